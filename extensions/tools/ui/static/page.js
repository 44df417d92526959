// What every page does: forms that ask before something is lost, and lists that stay current.
export const texts = JSON.parse(document.getElementById('texts').textContent);

// Marks of the direction of text as they are seen: a name could look as another with them.
export const shown = text => text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
  mark => `‹U+${mark.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}›`);

export function tell(text, isBad = false) {
  const told = document.getElementById('told');
  told.textContent = shown(text);
  told.className = isBad ? 'bad' : '';
}

// Puts parts of this page in as the server has them by now.
export async function renew(...places) {
  const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), 'text/html');
  for (const place of places) document.querySelector(place)?.replaceWith(page.querySelector(place) ?? '');
}

// Shows the image of a link in the page's #large. words(link): what stands below it; move(link, by): the link before (-1)
// or after (1) it, if there is one. Returns what is done at a click on a link.
export function viewer(words, move) {
  const large = document.getElementById('large');
  let open = null;
  const show = link => {
    if (!link) return;
    open = link;
    large.querySelector('img').src = link.href;
    large.querySelector('p').textContent = shown(words(link));
    if (!large.open) large.showModal();
  };
  for (const button of large.querySelectorAll('[data-by]')) {
    button.addEventListener('click', () => show(move(open, Number(button.dataset.by))));
  }
  large.addEventListener('keydown', event => {
    const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (by) show(move(open, by));
  });
  large.addEventListener('close', () => (open.closest('[tabindex]') ?? open).focus());
  return (event, link) => {
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(link);
  };
}

document.addEventListener('submit', event => {
  const question = event.submitter?.dataset.ask ?? event.target.dataset.ask;
  if (question && !confirm(question)) event.preventDefault();
});

// Replaces the children that differ of an element with data-live by those of its page, so that a choice in it stays.
async function refresh(list) {
  if (document.hidden || list.contains(document.activeElement)) return;
  const answer = await fetch(list.dataset.live + location.search, {headers: {accept: 'text/html'}});
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
  const fresh = page.querySelector(`[data-live="${list.dataset.live}"]`);
  if (!fresh) return;
  const chosen = new Set([...list.querySelectorAll(':checked')].map(box => box.value));
  for (const box of fresh.querySelectorAll('[type=checkbox]')) box.checked = chosen.has(box.value);
  if (fresh.innerHTML !== list.innerHTML) list.replaceChildren(...fresh.children);
}

for (const list of document.querySelectorAll('[data-live]')) {
  setInterval(() => refresh(list).catch(() => {}), Number(list.dataset.every ?? 5000));
}
