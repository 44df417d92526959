
function make(tag, attributes, ...children) {
  const svg = ['svg', 'path', 'line', 'text', 'g', 'circle'].includes(tag);
  const node = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shortNumber(value) {
  if (value === null || value === undefined) return '';
  const size = Math.abs(value);
  if (size && (size < 0.001 || size >= 1e6)) return value.toExponential(2).replace('e+', 'e');
  return String(Number(value.toPrecision(4)));
}

// ---- samples: one step of all prompts at a time

function samples() {
  const shown = document.getElementById('samples-shown');
  if (!shown) return;
  const steps = shown.dataset.steps.split(' ').map(Number);
  const slider = document.getElementById('step'), told = document.getElementById('step-shown');
  const play = document.getElementById('play'), large = document.getElementById('large');
  const figures = [...shown.querySelectorAll('figure')];
  let place = steps.length - 1, opened = -1, timer = 0;

  function go(to) {
    place = Math.min(steps.length - 1, Math.max(0, to));
    slider.value = place;
    told.textContent = 'step ' + steps[place].toLocaleString('en');
    slider.setAttribute('aria-valuetext', told.textContent);
    for (const node of shown.querySelectorAll('[data-step]')) node.hidden = Number(node.dataset.step) !== steps[place];
    if (opened >= 0) enlarge(opened);
  }
  function enlarge(index) {
    opened = Math.min(figures.length - 1, Math.max(0, index));
    const image = figures[opened].querySelector('[data-step]:not([hidden]) img');
    const picture = large.querySelector('img');
    picture.hidden = !image;
    if (image) picture.src = image.src;
    picture.alt = image ? image.alt : '';
    const prompt = figures[opened].querySelector('figcaption').textContent;
    large.querySelector('p').textContent = told.textContent + (image ? '' : ' (no image)') + ': ' + prompt;
    if (!large.open) large.showModal();
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = 'Play';
  }
  slider.addEventListener('input', () => { stop(); go(Number(slider.value)); });
  play.addEventListener('click', () => {
    if (timer) return stop();
    if (place === steps.length - 1) go(0);
    play.textContent = 'Stop';
    timer = setInterval(() => { go(place + 1); if (place === steps.length - 1) stop(); }, 700);
  });
  figures.forEach((figure, index) => figure.addEventListener('click', event => {
    if (event.target.closest('.picture')) enlarge(index);
  }));
  large.addEventListener('click', () => large.close());
  large.addEventListener('close', () => { opened = -1; });
  large.addEventListener('keydown', event => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key], rows = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (by) go(place + by);
    if (rows) enlarge(opened + rows);
    if (by || rows) event.preventDefault();
  });
  go(place);
}

// ---- curves

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const width = [1, 2, 5, 10].map(n => n * power).find(n => n >= rough);
  const found = [];
  for (let n = Math.ceil(low / width); n * width <= high + width * 1e-9; n++) found.push(Number((n * width).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++)
    for (const n of high - low < 2 ? [1, 2, 5] : [1]) found.push(power + Math.log10(n));
  const inside = found.filter(n => n >= low && n <= high);
  const every = Math.ceil(inside.length / 7);
  return inside.filter((_, index) => index % every === 0);
}

// The mean of the latest points, a twentieth of all.
function smoothed(values) {
  const few = Math.max(1, Math.floor(values.length / 20));
  return values.map((_, index) => {
    const latest = values.slice(Math.max(0, index + 1 - few), index + 1);
    return latest.reduce((sum, value) => sum + value, 0) / latest.length;
  });
}

function chart(diagram) {
  const left = 58, right = 10, top = 10, bottom = 24;
  const curves = diagram.curves.map((curve, index) => ({ ...curve, values: curve.mean,
    smooth: diagram.exact || curve.mean.length <= 30 ? [] : smoothed(curve.mean), colour: 'var(--series-' + index % 6 + ')',
    dash: index < 6 ? 'none' : '6 4', on: true }));
  const lowest = Math.min(...curves.flatMap(curve => curve.low)), isPositive = lowest > 0;
  let isLog = isPositive && Math.max(...curves.flatMap(curve => curve.high)) > 20 * lowest;

  const svg = make('svg', { role: 'img', 'aria-label': diagram.title });
  const toggle = make('button', { type: 'button' });
  const legend = make('div', { class: 'legend' });
  const card = make('div', { class: 'card chart' },
    make('div', { class: 'chart-head' }, make('h3', {}, diagram.title), toggle), svg, legend);
  toggle.hidden = !isPositive;
  const values = curves.map(curve => {
    const value = make('b');
    const swatch = make('i');
    const [full, gap] = curve.dash === 'none' ? [14, 14] : [6, 8];
    swatch.style.background = 'repeating-linear-gradient(90deg, ' + curve.colour + ' 0 ' + full + 'px, transparent 0 ' + gap + 'px)';
    const button = make('button', { type: 'button', 'aria-pressed': 'true' }, swatch, curve.name, value);
    button.addEventListener('click', () => {
      curve.on = !curve.on;
      button.setAttribute('aria-pressed', curve.on);
      draw();
    });
    legend.append(button);
    return value;
  });
  if (diagram.left_out.length) legend.append(make('span', { class: 'faint' }, 'not drawn: ' + diagram.left_out.join(', ')));

  let x, scale, drawnWidth;
  function draw() {
    const width = drawnWidth = svg.clientWidth, height = svg.clientHeight;
    svg.setAttribute('viewBox', '0 0 ' + width + ' ' + height);
    svg.replaceChildren();
    toggle.textContent = isLog ? 'logarithmic' : 'linear';
    const seen = curves.filter(curve => curve.on);
    const of = value => isLog ? Math.log10(value) : value;
    const steps = seen.flatMap(curve => curve.steps);
    const all = seen.flatMap(curve => curve.values).filter(value => value !== null).map(of).sort((a, b) => a - b);
    if (!all.length || !width) return;
    // A few wild steps do not flatten all others: they leave the picture.
    const dense = seen.some(curve => curve.smooth.length);
    let low = all[0], high = dense ? all[Math.ceil(0.995 * (all.length - 1))] : all[all.length - 1];
    const pad = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    low -= pad; high += pad;
    let first = steps.reduce((a, b) => Math.min(a, b)), last = steps.reduce((a, b) => Math.max(a, b));
    if (first === last) { first -= 1; last += 1; }
    x = step => left + (step - first) / (last - first) * (width - left - right);
    const y = value => top + (high - of(value)) / (high - low) * (height - top - bottom);
    scale = { first, last };
    const clamp = value => Math.max(top - 2, Math.min(height - bottom, y(value)));
    for (const tick of isLog ? logTicks(low, high) : ticks(low, high, 5)) {
      const at = isLog ? y(10 ** tick) : y(tick);
      svg.append(make('line', { class: 'grid', x1: left, x2: width - right, y1: at, y2: at }));
      svg.append(make('text', { x: left - 6, y: at + 4, 'text-anchor': 'end' }, shortNumber(isLog ? 10 ** tick : tick)));
    }
    for (const tick of ticks(first, last, Math.max(2, width / 110)).filter(Number.isInteger)) {
      svg.append(make('text', { x: x(tick), y: height - 7, 'text-anchor': 'middle' }, tick.toLocaleString('en')));
    }
    for (const curve of seen) {
      const line = list => {
        let path = '', pen = false;
        list.forEach((value, index) => {
          if (value === null) { pen = false; return; }
          path += (pen ? 'L' : 'M') + x(curve.steps[index]).toFixed(1) + ' ' + clamp(value).toFixed(1);
          pen = true;
        });
        return path;
      };
      if (curve.smooth.length) svg.append(make('path', { class: 'raw', d: line(curve.values), stroke: curve.colour }));
      const main = curve.smooth.length ? curve.smooth : curve.values;
      svg.append(make('path', { d: line(main), stroke: curve.colour, 'stroke-dasharray': curve.dash }));
      if (main.length <= 30) main.forEach((value, index) => {
        if (value !== null) svg.append(make('circle', { cx: x(curve.steps[index]), cy: clamp(value), r: 2.5, fill: curve.colour }));
      });
    }
    show(null);
  }
  // The values at a step; null: those of the end.
  function show(step) {
    svg.querySelectorAll('.cursor, .cursor-step').forEach(node => node.remove());
    curves.forEach((curve, index) => {
      const list = curve.smooth.length ? curve.smooth : curve.values;
      let best = -1;
      curve.steps.forEach((at, place) => {
        if (list[place] === null) return;
        if (best < 0 || step === null || Math.abs(at - step) < Math.abs(curve.steps[best] - step)) best = place;
      });
      values[index].textContent = best < 0 ? '' : shortNumber(list[best]);
    });
    if (step === null) return;
    svg.append(make('line', { class: 'cursor', x1: x(step), x2: x(step), y1: top, y2: svg.clientHeight - bottom }));
    const beyond = x(step) > svg.clientWidth / 2;
    svg.append(make('text', { class: 'cursor-step', x: x(step) + (beyond ? -5 : 5), y: top + 10,
      'text-anchor': beyond ? 'end' : 'start' }, 'step ' + Math.round(step).toLocaleString('en')));
  }
  toggle.addEventListener('click', () => { isLog = !isLog; draw(); });
  svg.addEventListener('pointermove', event => {
    if (!x) return;
    const share = (event.clientX - svg.getBoundingClientRect().left - left) / (svg.clientWidth - left - right);
    show(scale.first + Math.min(1, Math.max(0, share)) * (scale.last - scale.first));
  });
  svg.addEventListener('pointerleave', () => { if (x) show(null); });
  new ResizeObserver(() => { if (svg.clientWidth !== drawnWidth) draw(); }).observe(svg);
  return card;
}

samples();
const curvesShown = document.getElementById('curves');
if (curvesShown) curvesShown.append(...pageData().diagrams.map(chart));
