
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

// ---- curves, as on the page of a run; a part of them is cut out of what the report holds

function curves() {
  const area = document.getElementById('plots');
  if (!area) return;
  const {diagrams, marks} = pageData(), smooth = document.getElementById('smooth'), log = document.getElementById('log');
  let range = null;
  const plots = new Map();
  const zoomed = (from, to) => { range = from === null ? null : [from, to]; draw(); };
  const shared = {share: () => Number(smooth.value) / 100, log: () => log.checked, marks: () => marks,
    texts: {step: 'step'}, zoomed};
  function within(curve) {
    if (!range) return curve;
    const inside = (_, index) => curve.steps[index] >= range[0] && curve.steps[index] <= range[1];
    const cut = ['steps', 'low', 'high', 'mean'].map(kind => [kind, curve[kind].filter(inside)]);
    return {...curve, ...Object.fromEntries(cut)};
  }
  function draw() {
    for (const {title, exact, curves, left_out} of diagrams) {
      if (!plots.has(title)) plots.set(title, new Diagram(area, title, shared));
      plots.get(title).show(curves.map(within), exact, left_out.length ? `not plotted: ${left_out.join(', ')}` : '');
    }
  }
  for (const input of [smooth, log]) input.addEventListener('input', draw);
  document.getElementById('whole').addEventListener('click', () => zoomed(null));
  const recolour = () => { plots.forEach(plot => { plot.names = ''; }); draw(); };
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', recolour);
  draw();
}

samples();
curves();
