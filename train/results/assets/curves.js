// Draws the curves with uPlot: hover shows values at a step, dragging zooms, a double click resets.
const {panels} = JSON.parse(document.getElementById("data").textContent);
const drawn = new Map();  // element -> its plot
const smoothing = document.getElementById("smoothing");
const method = document.getElementById("method");
const HEIGHT = 250;
const FONT = "12px system-ui, sans-serif";

// Exponential moving average, corrected for its start; missing values stay missing.
function smoothed(values, weight) {
  let sum = 0, norm = 0;
  return values.map(value => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + 1 - weight;
    return sum / norm;
  });
}
// Steps, then for each line its mean and the ends of its band.
function columns(panel) {
  const weight = Number(smoothing.value), positive = value => panel.log && value <= 0 ? null : value;
  return [panel.steps, ...panel.lines.flatMap(line => {
    const mean = smoothed(line.mean, weight);
    const std = line.std ? smoothed(line.std, weight) : mean.map(() => null);
    const end = sign => mean.map((value, i) =>
      value === null || std[i] === null ? null : positive(value + sign * std[i]));
    return [mean.map(positive), end(1), end(-1)];
  })];
}
function text(value) {
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-2 || size >= 1e5) ? value.toExponential(2) : value.toFixed(4);
}
// Labels of a log axis, which uPlot would round to three decimals.
function powers(_, ticks) {
  return ticks.map(value => value === null ? "" : value.toExponential().replace("e+", "e"));
}
function options(panel, width) {
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const ink = css("--ink"), line = css("--line");
  const axis = {stroke: ink, font: FONT, labelFont: FONT, grid: {stroke: line, width: 1},
    ticks: {show: false}};
  const series = panel.lines.flatMap(({label, colour, dashes}, position) => {
    const stroke = colour === "ink" ? ink : colour;
    const edge = {class: "u-edge", width: 0, points: {show: false}, spanGaps: true};
    const value = (plot, number, _, index) => {
      if (number == null) return "–";
      const upper = plot.data[3 * position + 2][index];
      return text(number) + (upper == null ? "" : " ± " + text(upper - number));
    };
    const points = {show: panel.steps.length < 20, size: 5};
    return [{label, stroke, dash: dashes, width: 1.6, points, value, spanGaps: true},
      {...edge}, {...edge}];
  });
  const bands = panel.lines.map(({colour}, position) => ({
    series: [3 * position + 2, 3 * position + 3],
    fill: (colour === "ink" ? ink : colour) + "33",
  }));
  return {
    width, height: HEIGHT, bands,
    scales: {x: {time: false}, y: {range: () => panel.range, distr: panel.log ? 3 : 1}},
    series: [{label: "step", value: (_, step) => step ?? "–"}, ...series],
    axes: [{...axis, label: "step", labelSize: 18, size: 30},
      {...axis, label: panel.label, labelSize: 20, size: 58,
        ...(panel.log ? {values: powers} : {})}],
    cursor: {sync: {key: "steps"}, points: {size: (_, index) => index % 3 === 1 ? 7 : 0}},
    hooks: {setSeries: [(plot, index, {show}) => {  // a band is hidden with its line
      if (index % 3 === 1 && show !== undefined) {
        for (const edge of [index + 1, index + 2]) plot.setSeries(edge, {show});
      }
    }]},
  };
}
function draw(holder) {
  const panel = panels[holder.dataset.panel];
  drawn.get(holder)?.destroy();
  holder.replaceChildren(Object.assign(document.createElement("h4"), {textContent: panel.title}));
  drawn.set(holder, new uPlot(options(panel, holder.clientWidth), columns(panel), holder));
}
function redraw() {
  for (const holder of document.querySelectorAll(".chart")) {
    if (holder.clientWidth) draw(holder);
  }
}
smoothing?.addEventListener("input", () => {
  smoothing.parentElement.querySelector("output").textContent = smoothing.value;
  for (const [holder, plot] of drawn) plot.setData(columns(panels[holder.dataset.panel]), false);
  for (const plot of drawn.values()) plot.redraw();
});
method?.addEventListener("change", () => {
  for (const part of document.querySelectorAll(".method")) {
    part.hidden = part.dataset.method !== method.value;
    for (const holder of part.querySelectorAll(".chart")) if (!part.hidden) draw(holder);
  }
});
const widths = new ResizeObserver(entries => requestAnimationFrame(() => {
  for (const {target} of entries) {
    if (target.clientWidth && drawn.get(target)?.width !== target.clientWidth) draw(target);
  }
}));
for (const holder of document.querySelectorAll(".chart")) widths.observe(holder);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", redraw);
