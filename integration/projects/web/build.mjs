import { cp, readFile, writeFile } from 'node:fs/promises';
import * as esbuild from 'esbuild';

const options = {
  entryPoints: ['src/main.ts'],
  bundle: true,
  minify: true,
  outdir: 'dist',
  define: { TITLE: JSON.stringify(process.env.TITLE) },
};

if (process.argv.includes('--serve')) {
  const context = await esbuild.context(options);
  await context.serve({ servedir: 'dist' });
} else {
  await esbuild.build(options);
  const page = await readFile('src/index.html', 'utf8');
  await writeFile('dist/index.html', page.replaceAll('%PUBLIC_URL%', process.env.PUBLIC_URL));
  await cp('src/style.css', 'dist/style.css');
}
