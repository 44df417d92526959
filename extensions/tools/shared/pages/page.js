'use strict';
function pageData() {
  return JSON.parse(document.getElementById('data')?.textContent ?? '');
}
