// Weights at the optimum for each eps: `data.strengths` (d), `data.eps` (n), `data.weights` (n, d).
const LEFT = 45, RIGHT = 515, BOTTOM = 200, TOP = 15;
const widest = Math.max(...data.eps, ...data.strengths) * 1.05;
const highest = Math.max(...data.weights.flat()) * 1.05;
const across = (strength) => LEFT + (RIGHT - LEFT) * strength / widest;
const up = (weight) => BOTTOM - (BOTTOM - TOP) * weight / highest;

const svg = canvas(530, 240, "Weight of each feature over its strength");
const dead = draw(svg, "rect", {x: LEFT, y: TOP, height: BOTTOM - TOP, fill: "#c65d00", opacity: 0.12});
const line = {stroke: "currentColor"};
draw(svg, "line", {x1: LEFT, x2: RIGHT, y1: BOTTOM, y2: BOTTOM, ...line});
draw(svg, "line", {x1: LEFT, x2: LEFT, y1: TOP, y2: BOTTOM, ...line});
const small = {"font-size": 12, fill: "currentColor"};
draw(svg, "text", {x: 280, y: 236, "text-anchor": "middle", ...small}, "strength of the feature");
draw(svg, "text", {x: 8, y: 100, transform: "rotate(-90 16 108)", ...small}, "weight");
const limit = draw(svg, "line", {y1: TOP, y2: BOTTOM, stroke: COLORS[1], "stroke-dasharray": "5 3"});
const bars = data.strengths.map((strength) => {
  const place = {x: across(strength), y: BOTTOM + 16, "text-anchor": "middle", ...small};
  draw(svg, "text", place, strength);
  return draw(svg, "rect", {x: across(strength) - 8, width: 16, fill: COLORS[0]});
});

const show = (i) => {
  const eps = data.eps[i];
  dead.setAttribute("width", across(eps) - LEFT);
  limit.setAttribute("x1", across(eps));
  limit.setAttribute("x2", across(eps));
  bars.forEach((bar, j) => {
    bar.setAttribute("y", up(data.weights[i][j]));
    bar.setAttribute("height", BOTTOM - up(data.weights[i][j]));
  });
  const alive = data.strengths.filter((_, j) => data.weights[i][j] !== 0);
  const which = alive.length ? `those of strength ${alive.join(", ")}` : "the model is constant";
  words.textContent =
    `eps = ${eps.toFixed(2)}: ${alive.length} of ${data.strengths.length} features in use, ${which}.`;
};
const start = Math.floor(data.eps.length / 4);
slider("eps", 0, data.eps.length - 1, 1, start, show);
const words = said();
show(start);
