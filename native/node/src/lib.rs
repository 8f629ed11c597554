//! The addon: conversions and handles, nothing else.
//!
//! Every error's message is `code: detail` with a code of the project's failure list; the
//! TypeScript side makes its coded errors from that. Numbers come as `f64` and are checked here,
//! because the bridge does not check integers. Methods that take long answer with a promise that
//! a thread of `session` resolves; none blocks the event loop. Page data never comes here.

mod check;
mod convert;
mod promise;
mod source;
mod target;
