// What every JavaScript client program does once it is connected: list, search, echo, a failing call.
// Connecting, and what is particular to one client library, stays in that client's own file.
import { readFileSync } from 'node:fs';

/** Tools that bigiron serves without any configuration. */
export const TOOLS = ['search_text', 'read_file', 'query_json', 'query_sql', 'echo', 'burn'];

export const MODERN = '2026-07-28';
export const LEGACY = '2025-11-25';

const LIMIT_MS = 60_000;

export function check(condition, message) {
  if (!condition) throw new Error(message);
}

/** The endpoint from the command line. */
export function endpoint() {
  const url = process.argv[2];
  check(url, `usage: ${process.argv[1]} http://127.0.0.1:PORT/mcp`);
  return new URL(url);
}

/** The version of a package that is really installed, not the one that package.json asks for. */
export function installedVersion(name) {
  const manifest = new URL(`./node_modules/${name}/package.json`, import.meta.url);
  return JSON.parse(readFileSync(manifest, 'utf8')).version;
}

/**
 * Runs the scenario through two functions of a connected client:
 * `listTools()` gives all tools, `callTool(name, arguments)` a raw tools/call result.
 * Returns how many hits named src/main.rs.
 */
export async function exercise({ listTools, callTool }) {
  const names = (await listTools()).map((tool) => tool.name);
  const missing = TOOLS.filter((name) => !names.includes(name));
  check(missing.length === 0, `tools/list lacks ${missing}; it has ${names}`);

  const found = await callTool('search_text', { pattern: 'fn main' });
  check(!found.isError, `search_text failed: ${show(found)}`);
  const hits = countHits(found);
  check(hits > 0, `search_text for "fn main" does not name src/main.rs: ${show(found)}`);

  const echoed = await callTool('echo', { message: 'hello' });
  check(!echoed.isError && JSON.stringify(echoed).includes('hello'), `echo did not answer hello: ${show(echoed)}`);

  const invalid = await callTool('search_text', { pattern: '(' });
  check(invalid.isError === true, `an invalid regex must answer isError: ${show(invalid)}`);
  return hits;
}

/** Hits that name src/main.rs, in the structured part where there is one, else in lines of text. */
export function countHits(result) {
  const count = (value) => {
    if (typeof value === 'string') return value.split('\n').filter((line) => line.includes('src/main.rs')).length;
    if (value === null || typeof value !== 'object') return 0;
    return Object.values(value).reduce((sum, inner) => sum + count(inner), 0);
  };
  return count(result.structuredContent) || count(result.content);
}

/** Runs `main` within the limit, prints its JSON line, and turns any failure into exit code 1. */
export async function program(client, version, main) {
  const timer = setTimeout(() => {
    console.error(`${client} ${version}: no end after ${LIMIT_MS} ms`);
    process.exit(1);
  }, LIMIT_MS);
  try {
    console.log(JSON.stringify({ client, version, ...(await main()) }));
  } catch (error) {
    console.error(`${client} ${version}: ${error?.stack ?? error}`);
    process.exitCode = 1;
  } finally {
    clearTimeout(timer);
  }
}

function show(value) {
  return JSON.stringify(value).slice(0, 600);
}
