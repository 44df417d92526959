// The frame of what is trained of an image, moved by its slider or by hand, and kept when it is let go.
import {tell} from '/static/page.js';
import {ask} from '/static/upload.js';

const rows = document.querySelector('.rows');

function show(range) {
  const by = (range.value / range.max) * range.dataset.room;
  const frame = range.closest('.image').querySelector('svg g');
  frame.setAttribute('transform', range.dataset.axis === 'y' ? `translate(0 ${by})` : `translate(${by})`);
}

rows?.addEventListener('input', ({target}) => target.name === 'at' && show(target));
rows?.addEventListener('change', async ({target}) => {
  if (target.name !== 'at') return;
  const sent = {method: 'POST', body: new URLSearchParams(new FormData(target.form))};
  const answer = await ask(target.form.action, sent).catch(error => ({detail: error.message}));
  if (!answer.ok) tell(answer.detail, true);
});

rows?.addEventListener('pointerdown', event => {
  const view = event.target.closest('.open .view:has(g)'),
    range = view?.closest('.image').querySelector('[name=at]');
  if (!range) return;
  const {axis, room} = range.dataset,
    before = range.valueAsNumber;
  const scale = range.max / room / view.querySelector('svg').getScreenCTM().a;
  view.setPointerCapture(event.pointerId);
  view.onpointermove = now => {
    range.value = before + (now[axis] - event[axis]) * scale;
    show(range);
  };
  view.onlostpointercapture = () => (view.onpointermove = null);
  view.onclick = click => {
    if (range.valueAsNumber === before) return; // it is shown large
    click.preventDefault();
    click.stopPropagation();
    range.dispatchEvent(new Event('change', {bubbles: true}));
  };
});
rows?.addEventListener('dragstart', event => event.preventDefault());
