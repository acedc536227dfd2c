// The story, in the side panel; the place that was jumped to is marked.
import { useEffect, useRef, useSyncExternalStore } from 'react';

const { text } = props;
page.story = text;

function Story() {
  const { place } = useSyncExternalStore(page.subscribe, page.get);
  const mark = useRef(null);
  useEffect(() => {
    mark.current?.scrollIntoView({ block: 'center' });
  }, [place]);
  if (!place) return <div id="story-text" className="prose">{page.story}</div>;
  // The server counts characters, as the browser's strings do not for emoji and the like.
  const signs = [...page.story];
  const end = place.start + place.length;
  return (
    <div id="story-text" className="prose">
      {signs.slice(0, place.start).join('')}
      <mark ref={mark}>{signs.slice(place.start, end).join('')}</mark>
      {signs.slice(end).join('')}
    </div>
  );
}

export default page.component('Story', Story);
