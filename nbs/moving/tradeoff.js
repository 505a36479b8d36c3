// Each of `data.runs`: its data set, method, strength, seed and measures, a point.
const LEFT = 60, RIGHT = 515, BOTTOM = 255, TOP = 32;
const MEASURES = {accuracy: "accuracy", robust: "accuracy under attack", gini: "Gini index"};
const unique = (field, runs = data.runs) => [...new Set(runs.map((run) => run[field]))];
const methods = unique("method");
const AVERAGE = "mean of the seeds";
let set = unique("data")[0], seed = AVERAGE, pair = "gini over accuracy";

const average = (runs) => {
  const groups = {};
  for (const run of runs) (groups[`${run.method} ${run.strength}`] ??= []).push(run);
  const mean = (group, field) => group.reduce((sum, run) => sum + run[field], 0) / group.length;
  return Object.values(groups).map((group) => ({
    ...group[0],
    ...Object.fromEntries(Object.keys(MEASURES).map((field) => [field, mean(group, field)])),
    seeds: group.length,
  }));
};
choice("data", unique("data"), (chosen) => { set = chosen; show(); });
const seeds = [AVERAGE, ...unique("seed").sort().map((number) => `seed ${number}`)];
choice("runs", seeds, (chosen) => { seed = chosen; show(); });
const PAIRS = {
  "gini over accuracy": ["accuracy", "gini"],
  "accuracy under attack over accuracy": ["accuracy", "robust"],
  "gini over accuracy under attack": ["robust", "gini"],
};
choice("drawn", Object.keys(PAIRS), (chosen) => { pair = chosen; show(); });
const svg = canvas(530, 300, "Every training of a data set by two measures");
const words = said();

const mark = (place, i, name) => {
  const [x, y] = place, fill = {fill: COLORS[i % COLORS.length]};
  const shapes = [
    () => draw(svg, "circle", {cx: x, cy: y, r: 6, ...fill}),
    () => draw(svg, "rect", {x: x - 5, y: y - 5, width: 10, height: 10, ...fill}),
    () => draw(svg, "path", {d: `M${x} ${y - 7}l7 12h-14Z`, ...fill}),
    () => draw(svg, "path", {d: `M${x} ${y - 7}l7 7l-7 7l-7 -7Z`, ...fill}),
  ];
  if (name) draw(shapes[i % shapes.length](), "title", {}, name);
  else shapes[i % shapes.length]();
};

const show = () => {
  svg.replaceChildren();
  const here = data.runs.filter((run) => run.data === set);
  const runs = seed === AVERAGE ? average(here) : here.filter((run) => `seed ${run.seed}` === seed);
  const [horizontal, vertical] = PAIRS[pair];
  const range = (field) => {
    const values = here.map((run) => run[field]);
    const low = Math.min(...values), high = Math.max(...values), more = 0.06 * (high - low) || 0.05;
    return [low - more, high + more];
  };
  const [x0, x1] = range(horizontal), [y0, y1] = range(vertical);
  const place = (run) => [
    LEFT + (RIGHT - LEFT) * (run[horizontal] - x0) / (x1 - x0),
    BOTTOM - (BOTTOM - TOP) * (run[vertical] - y0) / (y1 - y0),
  ];
  const line = {stroke: "currentColor"}, small = {"font-size": 12, fill: "currentColor"};
  draw(svg, "line", {x1: LEFT, x2: RIGHT, y1: BOTTOM, y2: BOTTOM, ...line});
  draw(svg, "line", {x1: LEFT, x2: LEFT, y1: TOP, y2: BOTTOM, ...line});
  for (const share of [0.1, 0.5, 0.9]) {
    const x = LEFT + share * (RIGHT - LEFT), y = BOTTOM - share * (BOTTOM - TOP);
    const at = (low, high) => (low + share * (high - low)).toFixed(2);
    draw(svg, "text", {x, y: BOTTOM + 15, "text-anchor": "middle", ...small}, at(x0, x1));
    draw(svg, "text", {x: LEFT - 6, y: y + 4, "text-anchor": "end", ...small}, at(y0, y1));
  }
  const middle = (LEFT + RIGHT) / 2;
  const below = {x: middle, y: BOTTOM + 36, "text-anchor": "middle", ...small};
  draw(svg, "text", below, MEASURES[horizontal]);
  const turned = {transform: `translate(14 ${(TOP + BOTTOM) / 2}) rotate(-90)`, ...small};
  draw(svg, "text", {"text-anchor": "middle", ...turned}, MEASURES[vertical]);
  methods.forEach((method, i) => {
    const own = runs.filter((run) => run.method === method);
    own.sort((a, b) => a.strength - b.strength);
    const color = COLORS[i % COLORS.length];
    const points = own.map((run) => place(run).join(",")).join(" ");
    draw(svg, "polyline", {points, fill: "none", stroke: color, opacity: 0.5});
    for (const run of own) mark(place(run), i, `${method} ${run.strength}`);
    mark([LEFT + 8 + 120 * i, 12], i);
    draw(svg, "text", {x: LEFT + 20 + 120 * i, y: 16, ...small}, method);
  });
  const best = runs.reduce((a, b) => (b[vertical] > a[vertical] ? b : a), runs[0]);
  words.textContent = !best ? `No run of ${seed} on ${set}.` :
    `${set}, ${seed}: highest ${MEASURES[vertical]} ${best[vertical].toFixed(3)} with ` +
    `${best.method} ${best.strength}, at ${MEASURES[horizontal]} ${best[horizontal].toFixed(3)}.`;
};
show();
