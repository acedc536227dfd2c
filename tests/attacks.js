// What another site's page tries on the app. Each attack returns 'refused', or what it has reached.
async ([app, attack]) => {
  const loaded = (tag, source, parent) =>
    new Promise((resolve) => {
      const element = Object.assign(document.createElement(tag), { src: app + source });
      element.onload = () => resolve('loaded');
      element.onerror = () => resolve('refused');
      parent.append(element);
    });
  if (attack === 'image') return loaded('img', '/logo?theme=light', document.body);
  let sid = '';
  if (attack === 'script') {
    // JSONP: browsers load a script without an Origin, so it can open a session by polling.
    window.___eio = [(packet) => (sid = `&sid=${JSON.parse(packet.slice(1)).sid}`)];
    const answer = await loaded('script', '/ws/socket.io/?EIO=4&transport=polling&j=0', document.head);
    if (answer === 'refused') return answer;
  }
  const socket = new WebSocket(`${app.replace('http', 'ws')}/ws/socket.io/?EIO=4&transport=websocket${sid}`);
  const id = '00000000-0000-4000-8000-000000000000';
  const message = { id, createdAt: '2026-01-01T00:00:00Z', output: 'The old clock', name: 'User', type: 'user_message' };
  const open = `40${JSON.stringify({ sessionId: id, clientType: 'webapp' })}`;
  const prompt = `42${JSON.stringify(['client_message', { message }])}`;
  const replies = { 0: [open], 3: ['5', open], 40: ['42["connection_successful"]', prompt] };
  return new Promise((resolve) => {
    socket.onopen = () => sid && socket.send('2probe');
    socket.onclose = () => resolve('refused');
    socket.onmessage = ({ data }) => {
      if (data.startsWith('42["tokens"')) resolve(data); // a part of the continuation
      for (const packet of replies[data.match(/^(40|\d)/)[0]] ?? []) socket.send(packet);
    };
  });
};
