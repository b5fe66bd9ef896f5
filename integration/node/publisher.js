// Publishes as the original did: node publisher.js PORT ID MESSAGE [MESSAGE …]
const redis = require('redis');
const [port, id, ...messages] = process.argv.slice(2);
const client = redis.createClient(port, '127.0.0.1');
client.on('error', (err) => { console.error(err); process.exit(1); });
let left = messages.length;
for (const text of messages) {
  let msg = text;
  try { msg = JSON.parse(text); } catch (e) { /* a plain string */ }
  client.publish('pay_mq_channel', JSON.stringify({ id, msg }), (err, receivers) => {
    if (err) throw err;
    console.log(receivers);
    if (--left === 0) client.quit();
  });
}
