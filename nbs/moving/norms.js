// For each ball: `outline` of the ball and of the gradients of price 1; for gradients of the first
// quadrant on `data.axis` x `data.axis` the best `moves` and what they `pay`. Signs follow the gradient.
const SIZE = 340, MIDDLE = SIZE / 2, UNIT = 95;
const names = Object.keys(data.balls);
let name = names[0], gradient = [1, 0.4];

choice("ball", names, (chosen) => { name = chosen; show(); });
const svg = canvas(SIZE, SIZE, "A ball, a gradient, the best move, and the gradients of the same price");
const point = ([x, y]) => [MIDDLE + UNIT * x, MIDDLE - UNIT * y];
const path = (outline) => `M${outline.map((p) => point(p).map((v) => v.toFixed(1))).join("L")}Z`;
const axis = {stroke: "currentColor", opacity: 0.3};
draw(svg, "line", {x1: 0, x2: SIZE, y1: MIDDLE, y2: MIDDLE, ...axis});
draw(svg, "line", {y1: 0, y2: SIZE, x1: MIDDLE, x2: MIDDLE, ...axis});
const ball = draw(svg, "path", {fill: COLORS[1], opacity: 0.25});
const level = draw(svg, "path", {fill: "none", stroke: COLORS[0], "stroke-dasharray": "4 3"});
const arrow = (color, width) => {
  const stroke = {stroke: color, "stroke-width": width};
  const shaft = draw(svg, "line", {x1: MIDDLE, y1: MIDDLE, ...stroke});
  const tip = draw(svg, "circle", {r: width + 4, fill: color});
  return (end) => {
    const [x, y] = point(end);
    [["x2", x], ["y2", y]].forEach((pair) => shaft.setAttribute(...pair));
    [["cx", x], ["cy", y]].forEach((pair) => tip.setAttribute(...pair));
  };
};
const showMove = arrow(COLORS[1], 3), showGradient = arrow(COLORS[0], 5);

const show = () => {
  const {outline, price_one, moves, pays} = data.balls[name];
  const [i, j] = gradient.map((value) => Math.round(Math.abs(value) / data.axis[1]));
  const move = moves[i][j].map((value, k) => value * Math.sign(gradient[k] || 1));
  ball.setAttribute("d", path(outline));
  level.setAttribute("d", path(price_one.map((p) => p.map((value) => value * pays[i][j]))));
  showGradient(gradient);
  showMove(move);
  [first, second].forEach((input, k) => { input.value = gradient[k]; });
  const shown = (pair) => `(${pair.map((value) => value.toFixed(2)).join(", ")})`;
  words.textContent = `gradient ${shown(gradient)}: best move ${shown(move)}, ` +
    `penalty ${pays[i][j].toFixed(2)}, the ${data.balls[name].penalty} norm. ` +
    "All gradients on the dashed line pay the same.";
};
const most = data.axis[data.axis.length - 1];
const onGrid = (value) => {
  const step = data.axis[1];
  const kept = Math.min(most, Math.max(-most, Math.round(value / step) * step));
  return Number(kept.toFixed(2));
};
const pointAt = (k) => (value) => { gradient[k] = onGrid(value); show(); };
const first = slider("gradient of pixel 1", -most, most, data.axis[1], gradient[0], pointAt(0));
const second = slider("gradient of pixel 2", -most, most, data.axis[1], gradient[1], pointAt(1));
const words = said();
drag(svg, (x, y) => {
  gradient = [onGrid((x - MIDDLE) / UNIT), onGrid((MIDDLE - y) / UNIT)];
  show();
});
show();
