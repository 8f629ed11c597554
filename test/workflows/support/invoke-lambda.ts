/**
 * One cold invocation of the control worker's function, as the platform makes it: a new process, an
 * event, a context with a deadline. Prints one JSON line; argument: milliseconds until the deadline.
 */
const { handler } = await import('../../../runners/control/lambda.ts');
const began = performance.now();
// The platform counts an invocation's time from here: loading the module is its init phase.
const deadline = began + Number(process.argv[2]);
// What Temporal sends with an invocation: which deployment version has work, and where.
const event = {
  namespace: 'default',
  deployment: { name: 'novacron-control', buildId: process.argv[3] },
  taskQueue: { name: 'control', type: 'WORKFLOW' },
};
const context = {
  awsRequestId: `request-${process.pid}`,
  invokedFunctionArn: 'arn:aws:lambda:eu-west-1:000000000000:function:novacron-control',
  functionName: 'novacron-control',
  getRemainingTimeInMillis: () => Math.max(0, deadline - performance.now()),
};
await handler(event, context as unknown as Parameters<typeof handler>[1]);
console.log(JSON.stringify({
  workedMs: Math.round(performance.now() - began), leftMs: Math.round(deadline - performance.now()),
}));
process.exit(0);
