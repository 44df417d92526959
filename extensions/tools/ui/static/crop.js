// The frame of what is trained of an image, moved by its slider or by hand, and kept when it is let go.
import {all, one, tell} from '/static/page.js';
import {ask, offline} from '/static/upload.js';

/** @type {HTMLFormElement[]} */
const forms = all('form.crop');
for (const form of forms) {
  /** @type {HTMLInputElement} */
  const slider = one('[name=at]', form);
  const card = /** @type {Element} */ (form.closest('.image'));
  /** @type {SVGSVGElement} */
  const drawing = one('.view svg', card);
  const view = /** @type {HTMLElement} */ (drawing.parentElement);
  const isDown = slider.dataset.axis === 'y';
  const place = Number(slider.dataset.room) / Number(slider.max); // pixels of the image between two places

  const show = () => {
    const by = slider.valueAsNumber * place;
    one('g', drawing).setAttribute('transform', isDown ? `translate(0 ${by})` : `translate(${by})`);
  };
  const save = async () => {
    const body = new URLSearchParams({name: one('[name=name]', form).getAttribute('value') ?? '', at: slider.value});
    const answer = await ask(form.action, {method: 'POST', body}).catch(offline);
    if (!answer.ok) tell(answer.detail ?? '', true);
  };
  let saved = Promise.resolve();
  const keep = () => (saved = saved.then(save)); // one after the other, the last place last
  slider.addEventListener('input', show);
  slider.addEventListener('change', keep);

  // Tab goes from caption to caption, so these keys lead to the slider.
  one('[name=caption]', card)?.addEventListener('keydown', event => {
    const by = {PageUp: -5, PageDown: 5}[event.key];
    if (!by) return;
    event.preventDefault();
    slider.focus();
    slider.valueAsNumber += by;
    show();
    keep();
  });

  view.addEventListener('pointerdown', down => {
    if (!view.closest('.open')) return;
    const before = slider.valueAsNumber;
    const scale = place * (drawing.getScreenCTM()?.a ?? 1);
    view.setPointerCapture(down.pointerId);
    view.onpointermove = now => {
      slider.valueAsNumber = before + (isDown ? now.y - down.y : now.x - down.x) / scale;
      show();
    };
    view.onlostpointercapture = () => (view.onpointermove = null);
    view.onclick = click => {
      if (slider.valueAsNumber === before) return; // it is shown large
      click.preventDefault();
      click.stopPropagation();
      keep();
    };
  });
  view.addEventListener('dragstart', event => event.preventDefault());
}
