'use strict';

// What the health check runs: asks the server, and prints what it says.
const http = require('node:http');

const path = process.argv[2] ?? '/health';
http
  .get({ host: '127.0.0.1', port: process.env.PORT, path, agent: false }, (response) => {
    response.pipe(process.stdout);
    response.on('end', () => process.exitCode = response.statusCode === 200 ? 0 : 1);
  })
  .on('error', (error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
