// Diagrams by uPlot: of each curve the band from least to greatest, and a smoothed line through it.
const PALETTE = 6;
// light-dark() is resolved on an element only.
function resolved(name) {
  const probe = document.createElement('i');
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
const faded = value => value.replace(/^rgb\((.*)\)$/, 'rgba($1, 0.18)');

// An exponential mean that begins without a pull to zero; share of the past, 0 to 0.99.
export function smoothed(values, share) {
  let mean = 0, weight = 0;
  return values.map(value => {
    if (value === null || value === undefined) return null;
    mean = mean * share + value * (1 - share);
    weight = weight * share + (1 - share);
    return mean / weight;
  });
}

// Curves of unlike steps on one axis: [steps, low, high, smooth, low, high, smooth, ...].
function table(curves, share) {
  const steps = [...new Set(curves.flatMap(curve => curve.steps))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  const spread = (curve, values) => {
    const column = Array(steps.length);
    curve.steps.forEach((step, index) => { column[place.get(step)] = values[index]; });
    return column;
  };
  return [steps, ...curves.flatMap(curve => [
    spread(curve, curve.low), spread(curve, curve.high), spread(curve, smoothed(curve.mean, share))])];
}

function marks(list) {
  return {hooks: {drawAxes: [plot => {
    const {ctx, bbox} = plot;
    ctx.save();
    ctx.strokeStyle = resolved('--line');
    ctx.fillStyle = resolved('--faint');
    ctx.setLineDash([2, 4]);
    let free = -Infinity;
    for (const [step, name] of list()) {
      if (!(step >= plot.scales.x.min && step <= plot.scales.x.max)) continue;
      const x = plot.valToPos(Number(step), 'x', true);
      ctx.beginPath(), ctx.moveTo(x, bbox.top), ctx.lineTo(x, bbox.top + bbox.height), ctx.stroke();
      if (x < free) continue;
      ctx.fillText(name, x + 3, bbox.top + 10 * devicePixelRatio);
      free = x + ctx.measureText(name).width + 12;
    }
    ctx.restore();
  }]}};
}

// One diagram in an element; `zoomed(from, to)` is called with the steps that were chosen, null for all.
export class Diagram {
  constructor(parent, title, shared) {
    this.shared = shared;
    this.box = document.createElement('figure');
    this.box.className = 'plot card';
    const caption = document.createElement('figcaption');
    caption.textContent = title;
    this.note = document.createElement('p');
    this.note.className = 'faint';
    this.area = document.createElement('div');
    this.box.append(caption, this.area, this.note);
    parent.append(this.box);
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.box);
  }

  size() { return {width: Math.max(200, this.box.clientWidth - 24), height: this.box.clientWidth < 500 ? 190 : 250}; }

  // exact: values that are not scattered; a mean would only lag behind.
  show(curves, exact = false, note = '') {
    this.note.textContent = note;
    this.note.hidden = !note;
    const {share, log, zoomed} = this.shared;
    const names = curves.map(curve => curve.name).join() + log();
    const data = table(curves, exact ? 0 : share());
    if (this.plot && this.names === names) return this.plot.setData(data);
    this.plot?.destroy();
    this.names = names;
    const isPositive = curves.every(curve => curve.low.every(value => value === null || value > 0));
    const axis = {stroke: resolved('--faint'), grid: {stroke: resolved('--line'), width: 1}, ticks: {stroke: resolved('--line'), width: 1}};
    const series = [{label: this.shared.texts.step}], bands = [];
    curves.forEach((curve, index) => {
      const line = resolved(`--series-${index % PALETTE}`), at = series.length;
      const edge = {stroke: faded(line), width: 1, points: {show: false}, spanGaps: true};
      series.push({...edge, label: `${curve.name} ↓`, class: 'edge'}, {...edge, label: `${curve.name} ↑`, class: 'edge'},
        {label: curve.name, stroke: line, width: 2, points: {show: curve.steps.length < 40, size: 4}, spanGaps: true,
          value: (_, value) => value === null || value === undefined ? '–' : Number(value.toPrecision(4)).toString()});
      bands.push({series: [at + 1, at], fill: faded(line)});
    });
    this.plot = new uPlot({
      ...this.size(), series, bands, plugins: [marks(this.shared.marks)],
      scales: {x: {time: false}, y: {distr: log() && isPositive ? 3 : 1}},
      axes: [axis, {...axis, size: 64, values: (_, ticks) => ticks.map(tick => tick === null ? '' : Number(tick.toPrecision(4)).toString())}],
      cursor: {drag: {x: true, y: false, setScale: false}, sync: {key: 'run'}},
      legend: {live: true},
      hooks: {setSelect: [plot => {
        if (plot.select.width < 4) return;
        const from = plot.posToVal(plot.select.left, 'x'), to = plot.posToVal(plot.select.left + plot.select.width, 'x');
        plot.setSelect({left: 0, width: 0, top: 0, height: 0}, false);
        zoomed(Math.max(0, Math.floor(from)), Math.ceil(to));
      }]},
    }, data, this.area);
    this.plot.over.addEventListener('dblclick', () => zoomed(null));
  }
}
