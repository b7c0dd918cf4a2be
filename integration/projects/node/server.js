'use strict';

const polka = require('polka');
const { greeting } = require('./lib/greeting');

const server = polka()
  .get('/hello/:name', (request, response) => response.end(greeting(request.params.name)))
  .get('/health', (request, response) => response.end(`healthy, uid ${process.getuid()}, ${process.env.COMMIT}\n`));

server.listen(process.env.PORT, (error) => {
  if (error) throw error;
});

process.on('SIGINT', () => server.server.close(() => process.exit(0)));
