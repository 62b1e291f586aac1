// The TypeScript SDK's server with one `echo` tool, over Node's http, put together as its documentation does.
// Usage: node echo.mjs PORT
import { createServer } from 'node:http';
import { localhostHostValidation, localhostOriginValidation, toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server';
import { z } from 'zod';

const handler = toNodeHandler(
    createMcpHandler(() => {
        const server = new McpServer({ name: 'typescript-sdk', version: '1.0.0' });
        server.registerTool(
            'echo',
            { description: 'Sends the message back', inputSchema: z.object({ message: z.string() }) },
            async ({ message }) => ({ content: [{ type: 'text', text: message }] })
        );
        return server;
    })
);
const validHost = localhostHostValidation();
const validOrigin = localhostOriginValidation();
createServer((request, response) => {
    if (validHost(request, response) && validOrigin(request, response)) handler(request, response);
}).listen(Number(process.argv[2]), '127.0.0.1');
