"use strict";
// Draws the charts of the page from the data inside it, and shows the command of the lane that is chosen.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"];  // Okabe and Ito
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const MARKS = ["circle", "square", "diamond", "cross", "x", "triangle-up"];
  const find = (id) => document.getElementById(id);
  // Plotly reads a few tags in its texts, so those of a file are escaped.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const faded = (color) => color + "33";

  function element(tag, parent, properties = {}) {
    const made = Object.assign(document.createElement(tag), properties);
    parent.append(made);
    return made;
  }

  function choice(parent, id, text, options, names, change) {
    const label = element("label", parent, { textContent: text });
    const select = element("select", label, { id });
    options.forEach((value, i) => element("option", select, { value, textContent: names[i] }));
    select.addEventListener("change", change);
    return select;
  }

  function box(parent, id, text, change) {
    const label = element("label", parent, { className: "switch" });
    const input = element("input", label, { id, type: "checkbox" });
    label.append(text);
    input.addEventListener("change", change);
    return input;
  }

  const titled = (name) => (data.names[name] === name ? name : `${name}: ${data.names[name]}`);
  const several = data.axes.filter((axis) => axis.values.length > 1);

  // The controls of one chart: the metric, the axis whose values get a curve each, and a value of every other axis.
  function controls(prefix, names, along, draw) {
    const place = find(prefix + "-controls");
    const found = { metric: null, along: null, fixed: new Map() };
    const changed = () => draw(found);
    if (names.length) {
      found.metric = choice(place, prefix + "-metric", "metric", names, names.map(titled), () => { found.preset(); changed(); });
    }
    if (along && several.length > 1) {
      const axes = several.map((axis) => axis.name);
      found.along = choice(place, prefix + "-along", "a curve for each", axes, axes, () => { found.offer(); changed(); });
      found.along.value = axes.includes("method") ? "method" : axes.includes("eps") ? "eps" : axes[0];
    }
    for (const axis of several) {
      const select = choice(place, `${prefix}-at-${axis.name}`, axis.name, axis.values.map((_, i) => i), axis.values, changed);
      found.fixed.set(axis.name, select);
    }
    found.logx = box(place, prefix + "-logx", "log x", changed);
    found.logy = box(place, prefix + "-logy", "log y", changed);
    found.run = () => (found.along ? found.along.value : along && several.length ? several[0].name : null);
    found.offer = () => found.fixed.forEach((select, name) => {
      select.parentElement.style.display = name === (found.against || found.run()) ? "none" : "";
    });
    found.preset = () => {};
    return found;
  }

  // The number of a group of seeds, from a position on each axis.
  function group(places) {
    return data.axes.reduce((number, axis) => number * axis.values.length + (places[axis.name] || 0), 0);
  }

  function places(control) {
    const found = {};
    control.fixed.forEach((select, name) => { found[name] = Number(select.value); });
    return found;
  }

  // A logarithmic axis has a tick at each power of ten, and at 2 and 5 between them if there are few.
  function scale(log, title, values) {
    const there = values.filter((v) => typeof v === "number" && v > 0).map(Math.log10);
    const decades = there.length ? there.reduce((a, b) => Math.max(a, b)) - there.reduce((a, b) => Math.min(a, b)) : 0;
    const ticks = log && decades > 0.7 ? { dtick: decades > 1.2 ? Math.ceil(decades / 8) : "D2", minor: {} } : {};
    return {
      title: { text: plain(title) }, type: log ? "log" : "-", exponentformat: "power", automargin: true, zeroline: false,
      linecolor: "#5c5c5c", gridcolor: "#e4e4e4", ...ticks,
    };
  }

  const layout = (x, y, traces, logx, logy) => ({
    margin: { l: 70, r: 15, t: 30, b: 50 },
    font: { family: "system-ui, sans-serif", size: 13, color: "#1b1b1b" },
    xaxis: scale(logx, x, traces.flatMap((trace) => trace.x)),
    yaxis: scale(logy, y, traces.flatMap((trace) => trace.y)),
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" },
    annotations: traces.some((trace) => trace.y.some((v) => v !== null)) ? [] : [
      { text: "no finished run with finite values", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 },
    ],
    hovermode: "closest", paper_bgcolor: "#fff", plot_bgcolor: "#fff",
  });
  const config = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]] };
  const positive = (rows) => rows.every((row) => row.every((v) => v === null || v > 0)) && rows.some((row) => row.some((v) => v > 0));

  function overTime(control) {
    const name = control.metric.value, curves = data.curves[name], run = control.run();
    const axis = data.axes.find((one) => one.name === run);
    const values = axis ? axis.values : [""];
    const traces = [];
    const most = 12, step = Math.max(1, Math.ceil(values.length / most));
    values.forEach((value, i) => {
      const number = group({ ...places(control), ...(axis ? { [run]: i } : {}) });
      const x = data.x.length > 1 ? data.x[number] : data.x[0];
      const color = COLORS[i % COLORS.length], text = axis ? `${run} = ${value}` : name;
      const rows = curves[number], middle = rows[Math.floor(rows.length / 2)];
      const common = { x, mode: "lines", legendgroup: String(i), hoverinfo: "skip", showlegend: false };
      if (rows.length > 1) {
        traces.push({ ...common, y: rows[0], line: { width: 0 } });
        traces.push({ ...common, y: rows[2], line: { width: 0 }, fill: "tonexty", fillcolor: faded(color) });
      }
      traces.push({
        ...common, y: middle, name: plain(text), showlegend: i % step === 0, hoverinfo: "all",
        mode: middle.length > 30 ? "lines" : "lines+markers", marker: { symbol: MARKS[i % 6], size: 7 },
        line: { color, width: 2, dash: DASHES[i % DASHES.length] }, meta: plain(text),
        hovertemplate: "%{meta}<br>%{x:.4g}: %{y:.4g}<extra></extra>",
      });
    });
    Plotly.react("curves", traces, layout(data.clock, name, traces, control.logx.checked, control.logy.checked), config);
  }

  function atTheEnd(control) {
    const name = control.metric.value, run = control.against;
    const axis = data.axes.find((one) => one.name === run);
    const numeric = axis.values.every((value) => value !== "" && Number.isFinite(Number(value)));
    const xs = axis.values.map((value) => (numeric ? Number(value) : value));
    const points = { x: [], y: [], customdata: [] }, medians = [];
    xs.forEach((x, i) => {
      const at = { ...places(control), [run]: i }, number = group(at);
      data.points[name][number].forEach((y, seed) => {
        if (y === null) return;
        points.x.push(x); points.y.push(y);
        points.customdata.push([...data.axes.map((one) => at[one.name] || 0), seed].join(","));
      });
      medians.push(data.medians[name][number]);
    });
    const seeds = data.seeds ? data.seeds.length : 1;
    const traces = [{
      ...points, type: "scatter", mode: "markers", name: "one run", marker: { color: COLORS[4], size: 7, opacity: 0.55, line: { width: 0 } },
      hovertemplate: "%{x}: %{y:.4g}<extra>click for its command</extra>",
    }];
    if (seeds > 1) {
      traces.push({
        x: xs, y: medians, type: "scatter", mode: "markers", name: `median of ${seeds} seeds`,
        marker: { symbol: "line-ew", size: 20, line: { width: 3, color: "#1b1b1b" } }, hovertemplate: "median %{y:.4g}<extra></extra>",
      });
    }
    const laws = run === "eps" && data.laws[name];
    if (laws) {
      const rest = data.axes.filter((one) => one.name !== "eps"), at = places(control);
      const number = rest.reduce((sum, one) => sum * one.values.length + (at[one.name] || 0), 0);
      laws[number].forEach((law, i) => traces.push({
        x: law.x, y: law.y, type: "scatter", mode: "lines", name: plain(law.text), hoverinfo: "name",
        line: { color: i ? "#1b1b1b" : COLORS[5], width: i ? 1.5 : 4, dash: i ? "dash" : "solid" }, opacity: i ? 1 : 0.6,
      }));
    }
    Plotly.react("ends", traces, layout(axis.label, name + " at the end", traces, numeric && control.logx.checked, control.logy.checked), config);
    const chart = find("ends");
    if (!chart.dataset.heard) {
      chart.dataset.heard = "yes";
      chart.on("plotly_click", (event) => {
        const lane = event.points.map((point) => point.customdata).find((one) => typeof one === "string");
        if (lane) choose(lane);
      });
    }
  }

  // The command of a lane: the words that all lanes share, and those of its place on each axis.
  function choose(lane) {
    const at = lane.split(",").map(Number), names = data.axes.map((axis) => axis.name);
    const where = names.map((name, i) => `${name} = ${data.axes[i].values[at[i]]}`);
    if (data.seeds) where.push(`seed = ${data.seeds[at[names.length]]}`);
    const words = Object.entries(data.rerun.axes).map(([axis, each]) => each[axis === "seed" ? at[names.length] : at[names.indexOf(axis)]]);
    find("lane-name").textContent = where.join(", ") || "this run";
    find("command").textContent = data.rerun.reason || [data.rerun.common, ...words].filter(Boolean).join(" ");
    find("lane").hidden = false;
    document.querySelectorAll("tr[data-lane]").forEach((row) => row.classList.toggle("chosen", row.dataset.lane === lane));
  }

  const drawn = [];
  if (find("curves")) {
    const control = controls("curves", Object.keys(data.curves), true, overTime);
    control.preset = () => { control.logy.checked = positive(data.curves[control.metric.value].flat()); };
    control.preset(); control.offer();
    drawn.push(() => overTime(control));
  }
  if (find("ends")) {
    const axes = several.length ? several : data.axes;
    const numeric = axes.find((axis) => axis.name === "eps") || axes[0];
    const control = controls("ends", data.ends, false, atTheEnd);
    control.against = numeric.name;
    if (several.length > 1) {
      const names = several.map((axis) => axis.name);
      const select = choice(find("ends-controls"), "ends-against", "against", names, names, () => {
        control.against = select.value; control.preset(); control.offer(); atTheEnd(control);
      });
      select.value = numeric.name;
    }
    control.preset = () => {
      const xs = data.axes.find((axis) => axis.name === control.against).values.map(Number);
      control.logx.checked = xs.every((x) => x > 0) && Math.max(...xs) > 9.9 * Math.min(...xs);
      control.logy.checked = positive(data.points[control.metric.value]);
    };
    control.preset(); control.offer();
    drawn.push(() => atTheEnd(control));
  }
  document.querySelectorAll("tr[data-lane]").forEach((row) => {
    row.addEventListener("click", () => choose(row.dataset.lane));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(row.dataset.lane); });
  });
  find("copy").addEventListener("click", () => {
    const range = document.createRange();
    range.selectNodeContents(find("command"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    if (navigator.clipboard) navigator.clipboard.writeText(find("command").textContent).catch(() => {});
  });
  // On paper the charts shrink to the width of the sheet. Drawing them anew would come too late for the printer.
  const charts = [find("curves"), find("ends")].filter(Boolean);
  addEventListener("beforeprint", () => charts.forEach((chart) => {
    const width = chart.offsetWidth;
    Object.assign(chart.style, { width: `${width}px`, zoom: Math.min(1, 680 / width) });
  }));
  addEventListener("afterprint", () => charts.forEach((chart) => Object.assign(chart.style, { width: "", zoom: "" })));
  drawn.forEach((draw) => draw());
  document.documentElement.dataset.ready = "yes";
})();
