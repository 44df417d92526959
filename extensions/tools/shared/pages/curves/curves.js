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
  let mean = 0,
    weight = 0;
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
    curve.steps.forEach((step, index) => {
      column[place.get(step)] = values[index];
    });
    return column;
  };
  return [
    steps,
    ...curves.flatMap(curve => [
      spread(curve, curve.low),
      spread(curve, curve.high),
      spread(curve, smoothed(curve.mean, share)),
    ]),
  ];
}

function marks(list) {
  return {
    hooks: {
      drawAxes: [
        plot => {
          const {ctx, bbox} = plot;
          ctx.save();
          ctx.strokeStyle = resolved('--line');
          ctx.fillStyle = resolved('--faint');
          ctx.setLineDash([2, 4]);
          let free = -Infinity;
          for (const [step, name] of list()) {
            if (!(step >= plot.scales.x.min && step <= plot.scales.x.max)) continue;
            const x = plot.valToPos(Number(step), 'x', true);
            (ctx.beginPath(), ctx.moveTo(x, bbox.top), ctx.lineTo(x, bbox.top + bbox.height), ctx.stroke());
            if (x < free) continue;
            ctx.fillText(name, x + 3, bbox.top + 10 * devicePixelRatio);
            free = x + ctx.measureText(name).width + 12;
          }
          ctx.restore();
        },
      ],
    },
  };
}

const short = value => (value === null || value === undefined ? '–' : Number(value.toPrecision(4)).toString());
const MOST_ROWS = 12;

// What a curve shows, in words: where it begins and ends, and its extremes.
function described(curve, words) {
  const at = curve.steps
    .map((_, index) => index)
    .filter(index => curve.mean[index] !== null && curve.mean[index] !== undefined);
  if (!at.length) return curve.name;
  const [first, last] = [at[0], at.at(-1)],
    lowest = at.reduce((a, b) => (curve.low[b] < curve.low[a] ? b : a));
  const facts = {
    name: curve.name,
    first: short(curve.mean[first]),
    last: short(curve.mean[last]),
    low: short(curve.low[lowest]),
    from: curve.steps[first],
    to: curve.steps[last],
    at: curve.steps[lowest],
  };
  return words.described.replace(/\{(\w+)\}/g, (_, key) => facts[key]);
}

// The curves in a few rows, evenly spaced in steps: what a diagram is for those who do not see it.
function rows(curves) {
  const steps = [...new Set(curves.flatMap(curve => curve.steps))].sort((a, b) => a - b);
  const every = Math.max(1, (steps.length - 1) / (MOST_ROWS - 1));
  const chosen = [
    ...new Set(Array.from({length: Math.min(MOST_ROWS, steps.length)}, (_, row) => steps[Math.round(row * every)])),
  ];
  return chosen.map(step => [step, ...curves.map(curve => short(curve.mean[curve.steps.indexOf(step)]))]);
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
    this.numbers = document.createElement('details');
    this.numbers.append(document.createElement('summary'), document.createElement('table'));
    this.numbers.firstChild.textContent = shared.texts.numbers;
    this.numbers.lastChild.setAttribute('aria-label', title);
    this.title = title;
    this.box.append(caption, this.area, this.note, this.numbers);
    this.numbers.addEventListener('toggle', () => this.fill());
    parent.append(this.box);
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.box);
  }

  size() {
    return {width: Math.max(200, this.box.clientWidth - 24), height: this.box.clientWidth < 500 ? 190 : 250};
  }

  describe() {
    const canvas = this.area.querySelector('canvas'),
      said = this.curves.map(curve => described(curve, this.shared.texts));
    canvas.setAttribute('role', 'img');
    canvas.setAttribute('aria-label', `${this.title}: ${said.join('; ')}`);
  }

  // The table behind the curves, as long as somebody reads it.
  fill() {
    if (!this.numbers.open) return;
    const row = (cells, kind) => {
      const line = document.createElement('tr');
      line.append(
        ...cells.map((text, place) => {
          const cell = Object.assign(document.createElement(place ? kind : 'th'), {textContent: text});
          cell.setAttribute('scope', kind === 'th' ? 'col' : 'row');
          if (place && kind === 'td') cell.removeAttribute('scope');
          return cell;
        }),
      );
      return line;
    };
    const head = row([this.shared.texts.step, ...this.curves.map(curve => curve.name)], 'th');
    this.numbers.lastChild.replaceChildren(head, ...rows(this.curves).map(cells => row(cells, 'td')));
  }

  // exact: values that are not scattered; a mean would only lag behind.
  show(curves, exact = false, note = '') {
    this.note.textContent = note;
    this.note.hidden = !note;
    this.curves = curves;
    this.fill();
    const {share, log, zoomed} = this.shared;
    const names = curves.map(curve => curve.name).join() + log();
    const data = table(curves, exact ? 0 : share());
    if (this.plot && this.names === names) return (this.plot.setData(data), this.describe());
    this.plot?.destroy();
    this.names = names;
    const isPositive = curves.every(curve => curve.low.every(value => value === null || value > 0));
    const axis = {
      stroke: resolved('--faint'),
      grid: {stroke: resolved('--line'), width: 1},
      ticks: {stroke: resolved('--line'), width: 1},
    };
    const series = [{label: this.shared.texts.step}],
      bands = [];
    curves.forEach((curve, index) => {
      const line = resolved(`--series-${index % PALETTE}`),
        at = series.length;
      const edge = {stroke: faded(line), width: 1, points: {show: false}, spanGaps: true};
      series.push(
        {...edge, label: `${curve.name} ↓`, class: 'edge'},
        {...edge, label: `${curve.name} ↑`, class: 'edge'},
        {
          label: curve.name,
          stroke: line,
          width: 2,
          points: {show: curve.steps.length < 40, size: 4},
          spanGaps: true,
          value: (_, value) => (value === null || value === undefined ? '–' : Number(value.toPrecision(4)).toString()),
        },
      );
      bands.push({series: [at + 1, at], fill: faded(line)});
    });
    this.plot = new uPlot(
      {
        ...this.size(),
        series,
        bands,
        plugins: [marks(this.shared.marks)],
        scales: {x: {time: false}, y: {distr: log() && isPositive ? 3 : 1}},
        axes: [
          axis,
          {
            ...axis,
            size: 64,
            values: (_, ticks) => ticks.map(tick => (tick === null ? '' : Number(tick.toPrecision(4)).toString())),
          },
        ],
        cursor: {drag: {x: true, y: false, setScale: false}, sync: {key: 'run'}},
        legend: {live: true},
        hooks: {
          setSelect: [
            plot => {
              if (plot.select.width < 4) return;
              const from = plot.posToVal(plot.select.left, 'x'),
                to = plot.posToVal(plot.select.left + plot.select.width, 'x');
              plot.setSelect({left: 0, width: 0, top: 0, height: 0}, false);
              zoomed(Math.max(0, Math.floor(from)), Math.ceil(to));
            },
          ],
        },
      },
      data,
      this.area,
    );
    this.plot.over.addEventListener('dblclick', () => zoomed(null));
    this.describe();
  }
}
