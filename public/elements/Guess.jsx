// Tab of the panel: the text stops before a word. The learner guesses it, and sees what the model expected.
import { useEffect, useState, useSyncExternalStore } from 'react';

const OPTIONS = 6;

function Guess() {
  const { pause, running, surprises } = useSyncExternalStore(page.subscribe, page.get);
  const [guess, setGuess] = useState('');
  const [answer, setAnswer] = useState(null); // the guess and its probability
  const tokens = page.tokensOf(page.document());
  const next = pause === null ? undefined : page.look('next', page.read(pause));
  useEffect(() => {
    if (pause === null) page.pauseAfter(page.promptOf(page.document()).length);
  }, [pause, tokens.length]);
  useEffect(() => {
    setGuess('');
    setAnswer(null);
  }, [pause]);
  if (pause === null)
    return <p>{running ? 'The model writes a few words…' : 'The text ends before the next pause. Continue it, and guess on.'}</p>;
  const options = next?.top.filter(({ text }) => /^ \p{L}/u.test(text)).slice(0, OPTIONS).map(({ text }) => text.trim()).sort();
  const reveal = async (event) => {
    event.preventDefault();
    const prob = guess.trim() && (await page.probOf(pause, ` ${guess.trim()}`));
    if (!prob) return;
    setAnswer({ guess: guess.trim(), prob });
    page.set({ surprises: [...surprises, -Math.log2(prob)] });
  };
  const mean = surprises.reduce((sum, bits) => sum + bits, 0) / surprises.length;
  const Bars = page.components.Bars;
  return answer ? (
    <>
      <p id="score" aria-live="polite">
        The model gave <b className="label">{answer.guess}</b> {page.percent(answer.prob)}: a surprise of <b>{(-Math.log2(answer.prob)).toFixed(1)} bits</b>.
        {' '}It wrote <b className="label">{page.wordAt(pause)}</b>.
      </p>
      <p className="legend">
        Your average over {surprises.length} {surprises.length === 1 ? 'guess' : 'guesses'}: {mean.toFixed(1)} bits. 0 bits: the model was
        certain of your word. {Math.log2(page.config.vocabulary).toFixed(1)} bits: as if all its tokens were equally likely.
      </p>
      <button type="button" id="next-guess" className="primary" onClick={() => page.pauseAfter(pause + 5)}>Next word</button>
      {next && <Bars index={pause} token={tokens[pause]} next={next} />}
    </>
  ) : (
    <form onSubmit={reveal} className="column">
      <p>The text stops here. Which word comes next? Pick one or type your own.</p>
      <div className="options chips">
        {options?.map((text) => (
          <button key={text} type="button" aria-pressed={guess === text} onClick={() => setGuess(text)}>{text}</button>
        ))}
      </div>
      <input id="guess" aria-label="Your guess" placeholder="Your own word" autoComplete="off" maxLength={40} value={guess} onChange={(event) => setGuess(event.target.value)} />
      <button type="submit" id="reveal" className="primary" aria-disabled={!guess.trim()}>Reveal</button>
    </form>
  );
}

page.component('Guess', Guess);
export default () => null; // Panel shows it
