// The story, beside the text or, on a narrow screen, over it; with one passage marked.
import { useEffect, useRef, useSyncExternalStore } from 'react';

const BESIDE = '(min-width: 1000px)'; // as in style.css

// The server counts code points; strings here count UTF-16 units, two for an emoji.
function around({ start, length }) {
  const characters = [...page.story];
  return [[0, start], [start, start + length], [start + length]].map((part) => characters.slice(...part).join(''));
}

function Story() {
  const { reading, place } = useSyncExternalStore(page.subscribe, page.get);
  const dialog = useRef(null);
  const mark = useRef(null);
  useEffect(() => {
    if (!reading) return dialog.current.close();
    if (!dialog.current.open) matchMedia(BESIDE).matches ? dialog.current.show() : dialog.current.showModal();
    mark.current?.scrollIntoView({ block: 'center' });
  }, [reading, place]);
  const [before, marked, after] = reading && place ? around(place) : [page.story];
  const onKeyDown = (event) => event.key === 'Escape' && page.closeStory();
  return (
    <dialog id="story-panel" aria-label="The story" ref={dialog} onClose={page.closeStory} onKeyDown={onKeyDown}>
      <div className="row">
        <h2>The story</h2>
        <button type="button" aria-label="Close the story" onClick={page.closeStory}>Close</button>
      </div>
      {reading && <div id="story-text" className="prose" tabIndex={0}>{before}{marked && <mark ref={mark}>{marked}</mark>}{after}</div>}
    </dialog>
  );
}

export default page.component('Story', Story);
