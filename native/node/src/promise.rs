//! Promises that threads of `session` resolve.

use napi::bindgen_prelude::{Object, ToNapiValue};
use napi::{Env, Result};
use novacron_session::Failure;

use crate::convert::to_error;

type Resolver<T> = Box<dyn FnOnce(Env) -> Result<T> + Send>;

/// Makes a promise and hands `begin` the function that settles it, from any thread.
pub(crate) fn promise<'env, T: ToNapiValue + Send + 'static>(
    env: &'env Env,
    begin: impl FnOnce(Box<dyn FnOnce(std::result::Result<T, Failure>) + Send>) -> Result<()>,
) -> Result<Object<'env>> {
    let (deferred, promise) = env.create_deferred::<T, Resolver<T>>()?;
    let unused = deferred.clone();
    let begun = begin(Box::new(move |answer| match answer {
        Ok(value) => deferred.resolve(Box::new(move |_| Ok(value))),
        Err(failure) => deferred.reject(to_error(&failure)),
    }));
    if let Err(error) = begun {
        unused.reject(error);
    }
    Ok(promise)
}
