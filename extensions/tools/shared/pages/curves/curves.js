// Diagrams by uPlot: of each curve the band from least to greatest, and a smoothed line through it.
const PALETTE = 6;
/**
 * light-dark() is resolved on an element only.
 * @param {string} name
 */
function resolved(name) {
  const probe = document.createElement('i');
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
/** @param {string} value */
const faded = value => value.replace(/^rgb\((.*)\)$/, 'rgba($1, 0.18)');

/**
 * An exponential mean that begins without a pull to zero.
 * @param {Value[]} values
 * @param {number} share of the past, 0 to 0.99
 */
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

/**
 * Curves of unlike steps on one axis: [steps, low, high, smooth, low, high, smooth, ...].
 * @param {Curve[]} curves
 * @param {number} share
 * @returns {[number[], ...Value[][]]}
 */
function table(curves, share) {
  const steps = [...new Set(curves.flatMap(curve => curve.steps))].sort((a, b) => a - b);
  /** @type {(curve: Curve, values: Value[]) => Value[]} */
  const spread = (curve, values) => {
    const known = new Map(curve.steps.map((step, index) => [step, values[index]]));
    return steps.map(step => known.get(step));
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

/**
 * @param {() => Mark[]} list
 * @returns {uPlot.Plugin}
 */
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
            const {min, max} = plot.scales.x;
            if (min == null || max == null || step < min || step > max) continue;
            const x = plot.valToPos(Number(step), 'x', true);
            ctx.beginPath();
            ctx.moveTo(x, bbox.top);
            ctx.lineTo(x, bbox.top + bbox.height);
            ctx.stroke();
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

/** @param {Value} value */
const short = value => (value === null || value === undefined ? '–' : Number(value.toPrecision(4)).toString());
const MOST_ROWS = 12;

/**
 * What a curve shows, in words: where it begins and ends, and its extremes.
 * @param {Curve} curve
 * @param {CurveWords} words
 */
function described(curve, words) {
  const at = curve.steps
    .map((_, index) => index)
    .filter(index => curve.mean[index] !== null && curve.mean[index] !== undefined);
  if (!at.length) return curve.name;
  const [first, last] = [at[0], at[at.length - 1]];
  const lowest = at.reduce((a, b) => ((curve.low[b] ?? Infinity) < (curve.low[a] ?? Infinity) ? b : a));
  /** @type {Record<string, string | number>} */
  const facts = {
    name: curve.name,
    first: short(curve.mean[first]),
    last: short(curve.mean[last]),
    low: short(curve.low[lowest]),
    from: curve.steps[first],
    to: curve.steps[last],
    at: curve.steps[lowest],
  };
  return words.described.replace(/\{(\w+)\}/g, (_, key) => String(facts[key]));
}

/**
 * The curves in a few rows, evenly spaced in steps: what a diagram is for those who do not see it.
 * @param {Curve[]} curves
 * @returns {(string | number)[][]}
 */
function rows(curves) {
  const steps = [...new Set(curves.flatMap(curve => curve.steps))].sort((a, b) => a - b);
  const every = Math.max(1, (steps.length - 1) / (MOST_ROWS - 1));
  const chosen = [
    ...new Set(Array.from({length: Math.min(MOST_ROWS, steps.length)}, (_, row) => steps[Math.round(row * every)])),
  ];
  return chosen.map(step => [step, ...curves.map(curve => short(curve.mean[curve.steps.indexOf(step)]))]);
}

/**
 * @typedef {object} Shared what the diagrams of a page have in common
 * @property {() => number} share of the past in the mean
 * @property {() => boolean} log
 * @property {() => Mark[]} marks
 * @property {CurveWords} texts
 * @property {(from: number | null, to?: number) => void} zoomed called with the steps that were chosen, null for all
 */

/** One diagram in an element. */
export class Diagram {
  /**
   * @param {Element} parent
   * @param {string} title
   * @param {Shared} shared
   */
  constructor(parent, title, shared) {
    this.shared = shared;
    this.names = '';
    /** @type {Curve[]} */
    this.curves = [];
    /** @type {uPlot | null} */
    this.plot = null;
    this.box = document.createElement('figure');
    this.box.className = 'plot card';
    const caption = document.createElement('figcaption');
    caption.textContent = title;
    this.note = document.createElement('p');
    this.note.className = 'faint';
    this.area = document.createElement('div');
    this.numbers = document.createElement('details');
    const summary = Object.assign(document.createElement('summary'), {textContent: shared.texts.numbers});
    this.table = document.createElement('table');
    this.table.setAttribute('aria-label', title);
    this.numbers.append(summary, this.table);
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
    const canvas = this.area.querySelector('canvas');
    const said = this.curves.map(curve => described(curve, this.shared.texts));
    canvas?.setAttribute('role', 'img');
    canvas?.setAttribute('aria-label', `${this.title}: ${said.join('; ')}`);
  }

  // The table behind the curves, as long as somebody reads it.
  fill() {
    if (!this.numbers.open) return;
    /** @type {(cells: (string | number)[], kind: string) => HTMLElement} */
    const row = (cells, kind) => {
      const line = document.createElement('tr');
      line.append(
        ...cells.map((text, place) => {
          const cell = Object.assign(document.createElement(place ? kind : 'th'), {textContent: String(text)});
          cell.setAttribute('scope', kind === 'th' ? 'col' : 'row');
          if (place && kind === 'td') cell.removeAttribute('scope');
          return cell;
        }),
      );
      return line;
    };
    const head = row([this.shared.texts.step, ...this.curves.map(curve => curve.name)], 'th');
    this.table.replaceChildren(head, ...rows(this.curves).map(cells => row(cells, 'td')));
  }

  /**
   * @param {Curve[]} curves
   * @param {boolean} exact values that are not scattered; a mean would only lag behind
   * @param {string} note
   */
  show(curves, exact = false, note = '') {
    this.note.textContent = note;
    this.note.hidden = !note;
    this.curves = curves;
    this.fill();
    const {share, log, zoomed} = this.shared;
    const names = curves.map(curve => curve.name).join() + log();
    const data = table(curves, exact ? 0 : share());
    if (this.plot && this.names === names) {
      this.plot.setData(data);
      return this.describe();
    }
    this.plot?.destroy();
    this.names = names;
    const isPositive = curves.every(curve => curve.low.every(value => value == null || value > 0));
    const axis = {
      stroke: resolved('--faint'),
      grid: {stroke: resolved('--line'), width: 1},
      ticks: {stroke: resolved('--line'), width: 1},
    };
    /** @type {uPlot.Series[]} */
    const series = [{label: this.shared.texts.step}];
    /** @type {uPlot.Band[]} */
    const bands = [];
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
          value: (_, value) => short(value),
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
        axes: [axis, {...axis, size: 64, values: (_, ticks) => ticks.map(tick => (tick === null ? '' : short(tick)))}],
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
