// Images of a page, each shown large with the one before and after it.

// Marks of the direction of text as they are seen: a name could look as another with them.
export const shown = text =>
  text.replace(
    /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
    mark => `‹U+${mark.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}›`,
  );

// Shows the image of a link in the page's #large. words(link): what stands below it; move(link, by, rows): the link before
// (-1) or after (1) it, or so many rows below it, if there is one. Returns what is done at a click on a link.
export function viewer(words, move) {
  const large = document.getElementById('large');
  let open = null;
  const show = link => {
    if (!link) return;
    open = link;
    large.querySelector('img').src = link.href;
    large.querySelector('.words').textContent = shown(words(link));
    if (!large.open) large.showModal();
  };
  for (const button of large.querySelectorAll('[data-by]')) {
    const by = Number(button.dataset.by);
    button.addEventListener('click', () => (by ? show(move(open, by, 0)) : large.close()));
  }
  large.addEventListener('keydown', event => {
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!way) return;
    event.preventDefault();
    show(move(open, ...way));
  });
  large.addEventListener('close', () => (open.closest('[tabindex]') ?? open).focus());
  return (event, link) => {
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(link);
  };
}
