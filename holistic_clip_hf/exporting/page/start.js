// A classic script, since browsers load no module for a page that is opened as a file: it says so, or starts the page.
const problem = document.querySelector('#problem');

const tell = (sentence) => {
  problem.textContent = sentence;
  problem.hidden = false;
};

if (location.protocol === 'file:') {
  tell(
    'This page was opened as a file, for which browsers load nothing from its folder. Serve the folder, for example ' +
      'with “python -m http.server --directory FOLDER”, and open the address that is printed.',
  );
} else if (typeof WebAssembly !== 'object') {
  tell(
    'This browser has no WebAssembly, in which the text model runs. Take another browser, or allow it in this one.',
  );
} else {
  import('./page.js')
    .then(({ start }) => start(tell))
    .catch((error) => tell(`The page cannot start (${error.message}). Copy the whole folder that was exported.`));
}
