"use strict";
// Draws a view of a run (orchestrator/page/view.py). All that comes from a run becomes text, never markup.
(() => {
  const page = document.getElementById("page");
  const COLOURS = ["--blue", "--orange", "--green", "--violet"];
  const MARKS = { death: "death", recovery: "recovery", checkpoint: "checkpoint", trouble: "trouble", restart: "restart", preemption: "preemption", scaled: "scaled" };
  const SVG = "http://www.w3.org/2000/svg";
  let charts = [];
  const logarithmic = new Set();

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const draw = (tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const number = (value) => {
    if (typeof value !== "number") return value === null || value === undefined ? "–" : String(value);
    if (Number.isInteger(value)) return value.toLocaleString("en");
    return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  };
  const bytes = (value) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let unit = 0;
    while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
    return `${Number(value.toPrecision(3))} ${units[unit]}`;
  };
  const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
  const when = (seconds) => new Date(seconds * 1000).toLocaleString("en-GB");
  const lasting = (seconds) => {
    const whole = Math.round(seconds), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
    return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
  };
  const pill = (status) => make("span", { class: `pill ${status}` }, status);

  function table(heads, rows, numeric = []) {
    const cells = (tag, row) => row.map((cell, i) => {
      const wide = heads[i] === "event" || heads[i] === "what" ? "wrap" : "";
      return make(tag, { class: `${numeric.includes(i) ? "number" : wide}` }, cell);
    });
    return make("div", { class: "scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, ...cells("th", heads))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells("td", row))))));
  }

  // -- one run ------------------------------------------------------------------------------------------

  function facts(view) {
    const run = view.run, found = [];
    found.push(["step", run.steps ? `${number(run.step)} of ${number(run.steps)}` : number(run.step)]);
    if (run.loss !== null) found.push(["loss", number(run.loss)]);
    for (const [name, value] of Object.entries(run.metrics)) found.push([name, number(value)]);
    if (run.steps_per_s) found.push(["steps/s", number(run.steps_per_s)]);
    if (run.status === "running" && run.steps && run.steps_per_s)
      found.push(["left", lasting((run.steps - run.step) / run.steps_per_s)]);
    if (run.goodput !== null) found.push(["goodput", `${(100 * run.goodput).toFixed(1)} %`]);
    found.push(["attempt", number(run.attempt)], ["restarts", number(run.restarts)],
      ["worker deaths", number(run.worker_deaths)], ["steps lost", number(run.steps_lost)]);
    const list = make("dl", { class: "facts" });
    for (const [name, value] of found) list.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
    const card = make("section", { class: "card", "aria-label": "how it stands" }, list);
    if (run.steps) card.append(make("progress", { max: run.steps, value: Math.min(run.step, run.steps), "aria-label": "steps" }));
    return card;
  }

  const inWords = (curve) => !curve.last ? `${curve.name} has no finite value`
    : `${curve.name}: last ${number(curve.last[1])}, least ${number(curve.least[1])} at step ${number(curve.least[0])}, greatest ${number(curve.greatest[1])} at step ${number(curve.greatest[0])}`;

  function scaling(name, series) {
    if (!series.every((each) => each.values.every((value) => value === null || value > 0))) return logarithmic.delete(name), null;
    const button = make("button", { type: "button", "aria-pressed": String(logarithmic.has(name)), "aria-label": `logarithmic scale for ${name}` }, "log");
    button.addEventListener("click", () => {
      logarithmic.has(name) ? logarithmic.delete(name) : logarithmic.add(name);
      inPlace(redraw);
    });
    return button;
  }

  function chart(name, series) {
    const box = make("div", { class: "chart", role: "img", "aria-label": series.map(inWords).join("; ") });
    const card = make("section", { class: "card", "aria-label": `curve of ${name}` }, make("h2", {}, name === "steps_per_s" ? "steps/s" : name, scaling(name, series)), box);
    const steps = [...new Set(series.flatMap((each) => each.steps))].sort((a, b) => a - b);
    const place = new Map(steps.map((step, i) => [step, i]));
    const columns = series.map((each) => {
      const column = new Array(steps.length).fill(undefined);
      each.steps.forEach((step, i) => { column[place.get(step)] = each.values[i]; });
      return column;
    });
    const ink = colour("--quiet"), grid = { stroke: colour("--line"), width: 1 };
    const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif" };
    const options = {
      width: 300, height: 230, cursor: { points: { size: 6 } },
      scales: { x: { time: false }, y: logarithmic.has(name) ? { distr: 3 } : {} },
      axes: [{ ...axis }, { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => tick === null ? "" : number(tick)) }],
      series: [{ label: "step" }, ...series.map((each, i) => ({
        label: each.name.startsWith("val_") ? "validation" : "training", stroke: colour(COLOURS[each.name.startsWith("val_") ? 1 : 0]),
        width: 1.6, spanGaps: each.name.startsWith("val_"), points: { show: each.steps.length < 30 },
        value: (_, value) => number(value),
      }))],
    };
    charts.push({ box, options, data: [steps, ...columns] });
    return card;
  }

  function plot() {
    for (const each of charts) {
      each.options.width = Math.max(240, each.box.clientWidth);
      each.plot = new uPlot(each.options, each.data, each.box);
    }
  }

  function timeline(view) {
    const told = view.timeline, card = make("section", { class: "card", "aria-label": "timeline" }, make("h2", {}, "Timeline"));
    if (!told.parts.length) return card.append(make("p", { class: "quiet" }, "nothing has happened yet")), card;
    const narrow = page.clientWidth < 560, left = narrow ? 66 : 96, width = Math.max(300, page.clientWidth - 34), row = 18;
    const room = width - left - 8, now = told.parts[told.parts.length - 1][1];
    const at = (time) => {
      let found = told.parts[0];
      for (const part of told.parts) if (time >= part[0]) found = part;
      const [begin, end, from, to] = found;
      return left + room * (from + (to - from) * Math.min(1, Math.max(0, (time - begin) / (end - begin))));
    };
    const lanes = told.lanes, top = 34, height = top + lanes.length * row + 26;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${lanes.length} processes, ${told.marks.length} events` });
    svg.append(draw("text", { x: 0, y: 14 }, "attempts"), draw("text", { x: 0, y: 29 }, "events"));
    for (const each of told.attempts) {
      const x = at(each.begin), bar = draw("rect", { class: "attempt", x, y: 4, width: Math.max(2, at(each.end ?? now) - x - 2), height: 12, rx: 2 });
      bar.append(draw("title", {}, `attempt ${each.number}: ${each.status || "running"}, ${when(each.begin)}`));
      svg.append(bar);
      if (at(each.end ?? now) - x > 24) svg.append(draw("text", { class: "inside", x: x + 5, y: 14 }, each.number));
    }
    lanes.forEach((lane, i) => {
      const y = top + i * row, nodes = new Set(lanes.map((each) => each.node)).size;
      svg.append(draw("text", { x: 0, y: y + 13 }, `${nodes > 1 ? `${lane.node}: ` : ""}${lane.role} ${lane.rank}`));
      for (const span of lane.spans) {
        const x = at(span.begin), bar = draw("rect", { class: `span ${lane.role}`, x, y: y + 3, width: Math.max(2, at(span.end ?? now) - x - 1), height: row - 6, rx: 2 });
        bar.append(draw("title", {}, `${lane.role} ${lane.rank}${span.pid ? `, process ${span.pid}` : ""}: from ${clock(span.begin)}${span.end ? ` to ${clock(span.end)}, ${span.how}` : ""}`));
        svg.append(bar);
      }
    });
    for (const mark of told.marks) {
      const x = at(mark.time), group = draw("g", { class: MARKS[mark.kind] ?? "" });
      if (mark.kind === "death" || mark.kind === "restart") group.append(draw("line", { class: "mark", x1: x, x2: x, y1: 20, y2: height - 24 }));
      group.append(draw("circle", { class: "dot", cx: x, cy: 25, r: 3.5 }), draw("title", {}, `${clock(mark.time)} ${mark.text}`));
      svg.append(group);
    }
    const base = height - 20;
    svg.append(draw("line", { class: "axis", x1: left, x2: width - 8, y1: base, y2: base }));
    svg.append(draw("text", { x: left, y: height - 5 }, clock(told.parts[0][0])), draw("text", { x: width - 8, y: height - 5, "text-anchor": "end" }, clock(now)));
    card.append(svg);
    const kinds = [...new Set(told.marks.map((mark) => mark.kind))];
    if (kinds.length) card.append(make("div", { class: "legend" }, ...kinds.map((kind) => make("span", { class: MARKS[kind] ?? "" }, kind))));
    return card;
  }

  function checkpoints(view) {
    const card = make("section", { class: "card" }, make("h2", {}, "Checkpoints"));
    if (!view.checkpoints.length) return card.append(make("p", { class: "quiet" }, "none yet")), card;
    const rows = view.checkpoints.map((each) => [number(each.step), number(each.attempt), bytes(each.nbytes),
      make("span", { class: each.status }, each.status), each.verified ? "every byte" : "–", each.pinned ? "yes" : "–",
      each.created_at ? when(Date.parse(each.created_at) / 1000) : "–", each.reason]);
    card.append(table(["step", "attempt", "size", "state", "verified", "pinned", "written", "what"], rows, [0, 1, 2]));
    return card;
  }

  function events(view) {
    const told = [...view.timeline.log].reverse(), days = told.length && told[0].time - told[told.length - 1].time > 43200;
    const rows = told.map((each) => [(days ? when : clock)(each.time), number(each.step), each.text]);
    const card = make("section", { class: "card log" }, make("h2", {}, "Events"));
    card.append(rows.length ? table(["time", "step", "event"], rows, [1]) : make("p", { class: "quiet" }, "none yet"));
    return card;
  }

  let redraw = () => {};
  function show(view, back) {
    redraw = () => show(view, back);
    const run = view.run, top = make("header", {}, make("h1", {}, view.name), pill(run.status));
    if (back) top.prepend(make("a", { href: "#" }, "← runs"));
    const parts = [top];
    for (const text of [run.error, ...view.problems].filter(Boolean))
      parts.push(make("section", { class: "card error wrap", role: "alert" }, text));
    if (run.next) parts.push(make("p", { class: "quiet wrap" }, `next: ${run.next}`));
    parts.push(facts(view));
    charts = [];
    const groups = new Map();
    for (const each of view.curves) groups.set(each.chart, [...(groups.get(each.chart) ?? []), each]);
    if (groups.size) parts.push(make("div", { class: "charts" }, ...[...groups].map(([name, series]) => chart(name, series))));
    else parts.push(make("p", { class: "quiet" }, "nothing was measured yet"));
    page.replaceChildren(...parts);
    page.append(timeline(view), checkpoints(view), events(view));
    const last = make("p", { class: "quiet small wrap" }, `${run.run_dir}${run.state_digest ? ` · state digest ${run.state_digest}` : ""} · as of ${when(view.at)}`);
    page.append(last);
    plot();
    document.title = `${view.name}: ${run.status}`;
  }

  // -- several ------------------------------------------------------------------------------------------

  function list(found) {
    const rows = found.runs.map((run) => {
      const link = make("a", { href: `#run=${encodeURIComponent(run.name)}` }, run.name);
      if (!run.status) return [link, "unreadable", "–", "–", "–", "–", run.error];
      return [link, pill(run.status), run.steps ? `${number(run.step)} of ${number(run.steps)}` : number(run.step), number(run.loss),
        number(run.worker_deaths), number(run.restarts), run.error ?? (run.silent_s ? run.next : "")];
    });
    const card = make("section", { class: "card" });
    card.append(rows.length ? table(["run", "status", "step", "loss", "deaths", "restarts", "what"], rows, [2, 3, 4, 5]) : make("p", { class: "quiet" }, "there are no runs here yet"));
    page.replaceChildren(make("header", {}, make("h1", {}, "Runs")), card);
    document.title = "Holdfast";
  }

  // -- what is asked for, and when ----------------------------------------------------------------------

  let single = null, asked = 0, shown = "";
  async function ask(path) {
    const answer = await fetch(path);
    const found = await answer.json().catch(() => ({ error: `the server answers ${answer.status}` }));
    if (!answer.ok) throw new Error(found.error);
    return found;
  }

  async function refresh() {
    const turn = ++asked;
    let pause = 5000;
    try {
      const wanted = new URLSearchParams(location.hash.slice(1)).get("run");
      if (wanted === null || single === null) {
        const found = await ask("api/runs");
        single = found.single ? found.runs[0].name : false;
        if (!single && wanted === null && turn === asked) update(found, () => list(found));
      }
      const name = single || wanted;
      if (name) {
        const view = await ask(`api/run?name=${encodeURIComponent(name)}`);
        if (turn === asked) update({ ...view, at: 0 }, () => show(view, !single));
        pause = view.run.status === "running" ? 2000 : 5000;
      }
    } catch (error) {
      if (turn === asked) update(String(error), () => page.replaceChildren(make("section", { class: "card error wrap", role: "alert" }, String(error.message))));
    }
    if (turn === asked) setTimeout(() => { if (turn === asked) refresh(); }, pause);
  }

  function update(value, drawing) {
    const text = JSON.stringify(value);
    if (text === shown) return;
    shown = text;
    inPlace(drawing);
  }

  function inPlace(drawing) {
    const { scrollX, scrollY } = window, label = document.activeElement?.getAttribute("aria-label");
    drawing();
    if (label) page.querySelector(`button[aria-label="${CSS.escape(label)}"]`)?.focus();
    window.scrollTo(scrollX, scrollY);
  }

  const stored = document.getElementById("view");
  const again = stored ? () => show(JSON.parse(stored.textContent), false) : () => { shown = ""; refresh(); };
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; again(); } });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  if (!stored) window.addEventListener("hashchange", again);
  again();
})();
