'use strict';

const assert = require('node:assert');
const test = require('node:test');
const isNumber = require('is-number');
const { greeting } = require('../lib/greeting');

test('a greeting names whom it greets', () => {
  assert.equal(greeting('x'), 'hello x\n');
  assert.ok(isNumber(greeting('x').length));
});
