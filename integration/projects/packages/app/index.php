<?php
// Proves that what was installed works together.
$db = new PDO('sqlite::memory:');
$db->exec('CREATE TABLE words (word TEXT)');
$db->prepare('INSERT INTO words VALUES (?)')->execute(['größer']);
$word = $db->query('SELECT word FROM words')->fetchColumn();
$document = new DOMDocument();
$document->loadXML("<word>$word</word>");
echo mb_strtoupper($document->documentElement->textContent), ', ', ini_get('memory_limit'), ', ',
    posix_getpwuid(posix_geteuid())['name'], ', ', trim(shell_exec('speak')), "\n";
