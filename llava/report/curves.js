"use strict";
// Hover, keys and zoom for the drawings that the page already shows. A drawing's curves lie in an inner <svg>; zooming
// changes its viewBox and writes the axes anew. Hovering reads the numbers beside the drawing.
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [width, height] = data.size;
  const outer = figure.querySelector("svg.drawing"), area = outer.querySelector("svg.area");
  const marks = outer.querySelector("svg.marks"), cross = outer.querySelector(".cross");
  const brush = outer.querySelector(".brush"), hit = outer.querySelector(".hit");
  const reset = figure.querySelector("button"), at = figure.querySelector(".at");
  const outputs = [...figure.querySelectorAll("output")];
  const steps = [...new Set(data.series.flatMap((s) => s.steps))].sort((a, b) => a - b);
  let view = { x: data.x, y: data.y }, chosen = null, start = null;

  const scaled = (v) => (data.log ? (v > 0 ? Math.log10(v) : NaN) : v);
  const placeX = (step, [low, high] = view.x) => ((step - low) / (high - low)) * width;
  const placeY = (value, [low, high] = view.y) => height - ((value - low) / (high - low)) * height;
  const nearest = (list, wanted) => {
    let best = 0;
    list.forEach((s, i) => { if (Math.abs(s - wanted) < Math.abs(list[best] - wanted)) best = i; });
    return best;
  };
  const short = (v, figures = 4) => {
    if (v === null) return "–";
    const size = Math.abs(v);
    const text = v && (size < 1e-4 || size >= 1e6) ? v.toExponential(figures - 2) : String(Number(v.toPrecision(figures)));
    return text.replace("-", "−");
  };

  function linearTicks(low, high, most = 5) {
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
    const ticks = [];
    for (let i = Math.ceil(low / step); i <= Math.floor(high / step); i++) ticks.push(i * step);
    return ticks;
  }
  function valueTicks([low, high]) {
    if (!data.log) return linearTicks(low, high);
    const span = high - low, found = [];
    const places = span > 2.2 ? [1] : span > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 5, 7];
    for (let e = Math.floor(low); e <= Math.ceil(high); e++) for (const f of places) found.push(f * 10 ** e);
    const inside = found.filter((v) => Math.log10(v) >= low && Math.log10(v) <= high);
    // Between two such values a logarithmic axis is as good as a linear one.
    return inside.length > 1 ? inside.filter((_, i) => i % Math.ceil(inside.length / 8) === 0)
      : linearTicks(10 ** low, 10 ** high, 4);
  }
  function element(parent, name, attributes, text) {
    const made = document.createElementNS(outer.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
  }
  function axes() {
    const group = outer.querySelector(".axes");
    group.replaceChildren();
    for (const v of valueTicks(view.y)) {
      const y = placeY(scaled(v));
      element(group, "path", { d: `M0 ${y}h${width}`, class: "grid" });
      element(group, "text", { x: -6, y: y + 3.5, "text-anchor": "end" }, short(v));
    }
    for (const v of linearTicks(...view.x)) {
      const x = placeX(v);
      element(group, "path", { d: `M${x} ${height}v4`, class: "tick" });
      element(group, "text", { x, y: height + 15, "text-anchor": "middle" }, v.toLocaleString("en"));
    }
  }
  function show(next) {
    view = next;
    const x = placeX(view.x[0], data.x), w = placeX(view.x[1], data.x) - x;
    const y = placeY(view.y[1], data.y), h = placeY(view.y[0], data.y) - y;
    area.setAttribute("viewBox", `${x} ${y} ${w} ${h}`);
    marks.setAttribute("viewBox", `${x} 0 ${w} ${height}`);
    reset.hidden = view.x === data.x;
    axes();
    point(null);
  }
  // The steps from `low` to `high`, with the axis of values fitted to what they show.
  function zoom(low, high) {
    const values = [];
    for (const s of data.series) {
      s.steps.forEach((step, i) => {
        if (step >= low && step <= high) values.push(s.values[i], s.low?.[i] ?? null, s.high?.[i] ?? null);
      });
    }
    const seen = values.filter((v) => v !== null).map(scaled).filter(Number.isFinite);
    if (!seen.length || !(high > low)) return;
    const [least, most] = [Math.min(...seen), Math.max(...seen)];
    const room = 0.05 * (most - least) || 0.02 * (data.y[1] - data.y[0]);
    show({ x: [low, high], y: [least - room, most + room] });
  }
  // Writes every curve's value at the step that is nearest to `step` beside its name; null writes none.
  function point(step) {
    chosen = step === null ? null : nearest(steps, step);
    if (step === null) {
      outputs.forEach((o) => { o.textContent = ""; });
      at.textContent = "";
      cross.setAttribute("visibility", "hidden");
      return;
    }
    const here = steps[chosen], x = placeX(here);
    cross.setAttribute("d", `M${x} 0V${height}`);
    cross.setAttribute("visibility", x >= 0 && x <= width ? "visible" : "hidden");
    at.textContent = `step ${here.toLocaleString("en")}`;
    data.series.forEach((s, k) => {
      const i = nearest(s.steps, here);
      const figures = s.low ? 3 : 4;  // An interval needs the room.
      const band = s.low && s.low[i] !== null ? ` [${short(s.low[i], figures)}, ${short(s.high[i], figures)}]` : "";
      const other = s.steps[i] === here ? "" : ` at ${s.steps[i].toLocaleString("en")}`;
      outputs[k].textContent = `${short(s.values[i], figures)}${band}${other}`;
    });
  }
  function stepAt(event) {
    const box = hit.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    return view.x[0] + share * (view.x[1] - view.x[0]);
  }
  hit.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    start = stepAt(event);
    hit.setPointerCapture(event.pointerId);
    point(start);
  });
  hit.addEventListener("pointermove", (event) => {
    const step = stepAt(event);
    point(step);
    if (start === null) return;
    const [a, b] = [placeX(Math.min(start, step)), placeX(Math.max(start, step))];
    brush.setAttribute("d", `M${a} 0H${b}V${height}H${a}z`);
  });
  const release = (event) => {
    brush.setAttribute("d", "");
    const [from, to] = [start, stepAt(event)];
    start = null;
    // A drag of less than a fiftieth is a click.
    if (from !== null && event.type === "pointerup" && Math.abs(from - to) > (view.x[1] - view.x[0]) / 50) {
      zoom(Math.min(from, to), Math.max(from, to));
    }
  };
  hit.addEventListener("pointerup", release);
  hit.addEventListener("pointercancel", release);
  hit.addEventListener("pointerleave", () => { if (start === null) point(null); });
  hit.addEventListener("dblclick", () => show({ x: data.x, y: data.y }));
  reset.addEventListener("click", () => show({ x: data.x, y: data.y }));
  outer.setAttribute("tabindex", "0");
  outer.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") show({ x: data.x, y: data.y });
    if (!move) return;
    event.preventDefault();
    const next = chosen === null ? (move > 0 ? 0 : steps.length - 1) : chosen + move;
    point(steps[Math.min(Math.max(next, 0), steps.length - 1)]);
  });
}
