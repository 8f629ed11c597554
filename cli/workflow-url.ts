/** Link to a workflow's page in Temporal's UI: pure. */

/**
 * `<ui>/namespaces/<ns>/workflows/<id>[/<run>/history]`; ids contain slashes, hence the encoding.
 */
export function workflowUrl({ uiUrl, namespace, workflowId, runId }: {
  readonly uiUrl: string; readonly namespace: string; readonly workflowId: string;
  readonly runId: string | null;
}): string {
  const base = uiUrl.replace(/\/+$/, '');
  const page = `${base}/namespaces/${encodeURIComponent(namespace)}`
    + `/workflows/${encodeURIComponent(workflowId)}`;
  return runId === null ? page : `${page}/${encodeURIComponent(runId)}/history`;
}
