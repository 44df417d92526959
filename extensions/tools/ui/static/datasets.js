// One dataset: captions saved in place, keys between images. Files: upload.js.
import {all, around, one, renew, tell, texts, viewer} from '/static/page.js';
import {ask, offline, say} from '/static/upload.js';

const words = texts.datasets;
const main = one('#main');

// ---- captions

const NEXT = ['.counts', '#path', '.nexts']; // what a first or a last caption changes

/** @type {HTMLFormElement | null} */
const undoForm = document.querySelector('.undoing');
/** @param {string} step the change that Undo takes back; empty: there is none */
function undoes(step) {
  if (!undoForm) return;
  undoForm.hidden = !step;
  one('[name=step]', undoForm).setAttribute('value', step);
}
const undoStep = () => undoForm?.querySelector('[name=step]')?.getAttribute('value') ?? '';

/** @type {HTMLFormElement[]} */
const captions = all('form.caption');
/** @type {(form: HTMLFormElement) => HTMLTextAreaElement} */
const areaOf = form => one('[name=caption]', form);
/** @type {(form: HTMLFormElement) => HTMLInputElement} */
const versionOf = form => one('[name=version]', form);
/** @param {HTMLFormElement} form */
const noteOf = form => one('[role=status]', form);

/** @param {HTMLFormElement} form */
function mark(form) {
  const area = areaOf(form);
  const isDirty = area.value !== area.defaultValue;
  form.classList.toggle('clean', !isDirty);
  const short = one('.short', form);
  const text = area.value.trim();
  short.textContent = text || (short.dataset.none ?? '');
  if (text) short.className = 'short';
  else if (short.className === 'short') short.className = 'short warn';
  if (isDirty) noteOf(form).textContent = words.unsaved;
  return isDirty;
}

/** @param {HTMLFormElement} form */
async function save(form) {
  const [caption, version, note] = [areaOf(form), versionOf(form), noteOf(form)];
  const [before, sent] = [caption.defaultValue, caption.value];
  if (before === sent || form.classList.contains('busy')) return;
  form.classList.add('busy');
  const entries = [...new FormData(form)].map(([key, value]) => [key, String(value)]);
  try {
    const answer = await ask(form.action, {method: 'POST', body: new URLSearchParams(entries)});
    if (answer.ok) {
      version.value = answer.version ?? '';
      caption.defaultValue = sent;
      delete form.dataset.conflict;
      note.textContent = words.saved;
      note.className = 'good';
      setTimeout(() => {
        if (note.className === 'good') note.textContent = '';
      }, 2500);
      undoes(answer.step ?? '');
      if (!before.trim() !== !sent.trim()) renew(...NEXT);
    } else if (answer.status === 409 && answer.theirs !== undefined) {
      version.value = answer.version ?? '';
      caption.defaultValue = answer.theirs;
      form.dataset.conflict = ''; // only who asks for it replaces what somebody else wrote
      note.textContent = say(words.conflict, {theirs: answer.theirs});
      note.className = 'bad';
    } else {
      note.textContent = say(words.failed, {reason: answer.detail});
      note.className = 'bad';
    }
  } catch {
    note.textContent = words.offline;
    note.className = 'bad';
  }
  form.classList.remove('busy');
  const isClean = caption.value === caption.defaultValue;
  form.classList.toggle('clean', isClean);
  if (!isClean && note.className === 'good' && document.activeElement !== caption) save(form); // typed meanwhile
}

for (const form of captions) {
  mark(form);
  form.addEventListener('input', () => {
    noteOf(form).className = 'faint';
    mark(form);
  });
  form.addEventListener('submit', event => {
    event.preventDefault();
    save(form);
  });
  areaOf(form).addEventListener('blur', () => {
    if (!('conflict' in form.dataset)) save(form);
  });
}
addEventListener('beforeunload', event => {
  if (captions.some(mark)) event.preventDefault();
});

undoForm?.addEventListener('submit', async event => {
  event.preventDefault();
  const sent = {method: 'POST', keepalive: true, body: new URLSearchParams({step: undoStep()})};
  const answer = await ask(undoForm.action, sent).catch(offline);
  if (!answer.ok) return tell(say(words.failed, {reason: answer.detail}), true);
  for (const form of captions) {
    const caption = areaOf(form);
    const now = answer.now?.[one('[name=name]', form).getAttribute('value') ?? ''];
    if (!now || caption.value !== caption.defaultValue) continue; // what is being typed stays
    [versionOf(form).value, caption.value] = now;
    caption.defaultValue = caption.value;
    noteOf(form).textContent = words.undone;
    mark(form);
  }
  undoes(answer.step ?? '');
  renew(...NEXT);
  tell(answer.failed ? say(words.not_undone, {count: answer.failed}) : words.undone, Boolean(answer.failed));
});

// ---- images

main.addEventListener(
  'error',
  async event => {
    // an image that cannot be decoded: the answer says why
    const image = event.target;
    const view = image instanceof HTMLImageElement && image.closest('.view');
    if (!view) return;
    const answer = await ask(image.src).catch(() => null);
    const why = Object.assign(document.createElement('span'), {
      className: 'bad why',
      textContent: answer?.detail ?? '',
    });
    view.replaceChildren(why);
  },
  true,
);

const choosesAll = one('.all'); // where there are images
if (choosesAll) {
  /** @param {HTMLAnchorElement} link */
  const captioned = link => {
    /** @type {HTMLElement | null} */
    const card = link.closest('.image, .orphan');
    return `${card?.dataset.name} · ${card?.querySelector('textarea')?.value ?? ''}`;
  };
  const enlarge = viewer(captioned, (link, by) => {
    /** @type {HTMLAnchorElement[]} */
    const links = all('.view:has(img)');
    return links[links.indexOf(link) + by];
  });
  main.addEventListener('click', event => {
    const area = around(event, '.image:not(.open)')?.querySelector('textarea');
    const isMeant = around(event, '.sheet') || (rows.matches('.desk') && around(event, '.view'));
    if (!area || !isMeant) return enlarge(event, around(event, '.view:has(img)'));
    event.preventDefault();
    write(area);
  });

  choosesAll.hidden = false;
  choosesAll.addEventListener('change', event => {
    const {checked} = /** @type {HTMLInputElement} */ (event.target);
    /** @type {HTMLInputElement[]} */
    const boxes = all('[name=chosen]');
    for (const box of boxes) box.checked = checked;
  });
}

// ---- the desk: one image large, its caption below it, the others beside it

const [rows, desk] = [one('.rows'), one('#desk')]; // where there are images
rows?.classList.add('live');
const areas = captions.map(areaOf);

/** @param {HTMLTextAreaElement} area */
function write(area) {
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

// The word for the subject: what a model was told, or what all captions begin with.
function subject() {
  const firsts = areas.map(area => /^[^\s,.:]+/.exec(area.value.trim())?.[0]).filter(Boolean);
  return rows.dataset.trigger || (firsts.length > 2 && firsts.every(first => first === firsts[0]) ? firsts[0] : '');
}

/** @param {HTMLElement} card */
function openDesk(card) {
  rows.querySelector('.open')?.classList.remove('open');
  rows.classList.add('desk');
  card.classList.add('open');
  const word = subject() ?? '';
  const button = one('.word', desk);
  one('.num', desk).textContent = `${areas.indexOf(one('textarea', card)) + 1} / ${areas.length}`;
  button.textContent = word;
  button.hidden = !word;
  one('.sheet', card).append(desk);
  desk.hidden = false;
  card.scrollIntoView({block: 'nearest'});
}

function closeDesk() {
  rows.querySelector('.open')?.classList.remove('open');
  rows.classList.remove('desk');
  desk.hidden = true;
}

rows?.addEventListener('focusin', event => {
  const card = around(event, '[name=caption]')?.closest('.image');
  if (card) openDesk(/** @type {HTMLElement} */ (card));
});
desk?.querySelector('.word')?.addEventListener('click', event => {
  const area = around(event, '.image')?.querySelector('textarea');
  const word = one('.word', desk).textContent;
  if (!area) return;
  if (!area.value.includes(word)) area.value = `${word}, ${area.value}`;
  area.dispatchEvent(new Event('input', {bubbles: true}));
  write(area);
});

document.addEventListener('keydown', event => {
  /** @type {HTMLElement | null | undefined} */
  const card = document.activeElement?.closest('.image');
  const area = card?.querySelector('textarea');
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 's' && card) {
    event.preventDefault();
    save(one('form.caption', card));
  } else if (event.key === 'Escape' && area && card?.matches('.open')) {
    closeDesk();
    card.focus();
  } else if (
    document.activeElement === area &&
    area &&
    (event.key === 'Tab' || (event.key === 'Enter' && (event.ctrlKey || event.metaKey)))
  ) {
    const next = areas[areas.indexOf(area) + (event.shiftKey ? -1 : 1)];
    if (next || event.key === 'Enter') event.preventDefault();
    if (next)
      write(next); // leaving a caption saves it
    else if (area.form) save(area.form);
  } else if (document.activeElement === card && card) {
    const cards = all('.image');
    const by = Number(event.key === 'ArrowRight') - Number(event.key === 'ArrowLeft');
    const way = Number(event.key === 'ArrowDown') - Number(event.key === 'ArrowUp');
    /** @param {HTMLElement} other */
    const off = other => way * (other.offsetTop - card.offsetTop);
    /** @param {HTMLElement} other */
    const aside = other => Math.abs(other.offsetLeft - card.offsetLeft);
    const onTheWay = cards.filter(other => off(other) > 0);
    onTheWay.sort((each, other) => off(each) - off(other) || aside(each) - aside(other));
    const next = by ? cards[cards.indexOf(card) + by] : onTheWay[0];
    if (event.key === 'Enter' && area) {
      event.preventDefault();
      write(area);
    }
    if (event.key === ' ') {
      event.preventDefault();
      one('[name=chosen]', card)?.click();
    }
    if (next) {
      event.preventDefault();
      next.focus();
    }
  }
});

if (location.hash === '#lint') one('#lint')?.closest('details')?.setAttribute('open', '');
const lint = one('[data-status=running]');
if (lint) {
  const look = setInterval(async () => {
    const answer = await ask(lint.dataset.lint ?? '').catch(() => null);
    if (!answer || String(answer.status) === 'running' || captions.some(mark)) return;
    clearInterval(look);
    location.hash = 'lint'; // opens the panel, see above
    location.reload();
  }, 1000);
}
