//! The place of a request in its client's trace.

use std::str::FromStr as _;

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Makes `span`, which nobody has entered yet, a child of the span that a client named (W3C
/// Trace Context). Does nothing if traces are not exported, or if `traceparent` is none.
pub fn continue_trace(span: &Span, traceparent: &str, tracestate: Option<&str>) {
    if let Some(parent) = parent(traceparent, tracestate) {
        // Without a collector there is nobody to tell.
        span.set_parent(Context::new().with_remote_span_context(parent)).ok();
    }
}

fn parent(traceparent: &str, tracestate: Option<&str>) -> Option<SpanContext> {
    let mut parts = traceparent.split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
    // A state that makes no sense is left out (Trace Context, section 3.3).
    let state = tracestate.and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
    let parent = SpanContext::new(trace, span, flags, true, state);
    parent.is_valid().then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_read_whole() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = parent(text, Some("a=b")).unwrap();
        assert_eq!(parent.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parent.span_id().to_string(), "b7ad6b7169203331");
        assert!(parent.is_sampled() && parent.is_remote());
        assert_eq!(parent.trace_state().get("a"), Some("b"));
    }

    #[test]
    fn no_parent_is_none() {
        for bad in ["", "00", "00-x-y-01", &format!("00-{}-{}-01", "0".repeat(32), "0".repeat(16))]
        {
            assert!(parent(bad, None).is_none(), "{bad}");
        }
    }
}
