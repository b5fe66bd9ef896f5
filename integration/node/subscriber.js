// Subscribes as the original did, and prints what comes as JSON: node subscriber.js PORT
const redis = require('redis');
const client = redis.createClient(process.argv[2], '127.0.0.1');
client.on('error', (err) => { console.error(err); process.exit(1); });
client.on('subscribe', () => console.log('ready'));
client.on('message', (channel, text) => {
  const data = JSON.parse(text);
  console.log(JSON.stringify([channel, data.id, data.msg]));
});
client.subscribe('pay_mq_channel');
