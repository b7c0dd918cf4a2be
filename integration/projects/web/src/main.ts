import { heading } from './heading';

declare const TITLE: string;

document.body.append(heading(TITLE));
