//! The whole surface of the API: [`SURFACE`] lists all that is served, and is what the router, the tests and the check of the
//! description of the API go by. What is not in it is answered 404, and other methods on a path that is, 405.

pub(crate) mod batch;
pub(crate) mod changes;
mod conditions;
pub(crate) mod docs;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod listing;
pub(crate) mod orders;
pub(crate) mod prefer;
pub(crate) mod problems;
pub(crate) mod timeline;

use std::future::{Ready, ready};

use actix_web::body::BoxBody;
use actix_web::dev::HttpServiceFactory;
use actix_web::http::Method;
use actix_web::middleware::{Next, from_fn};
use actix_web::{HttpResponse, ResponseError as _, web};

use crate::observe::observe;
use crate::problem::{Kind, Problem};

/// The longest body that is read, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Label of requests to no route: their paths are anybody's to choose.
const NONE: &str = "none";

/// All paths, in the order in which they are tried: `/orders/events` looks like the path of an order.
pub static SURFACE: &[Resource] = &[
    Resource::new("/orders", &[(Method::GET, || web::to(listing::list)), (Method::POST, || web::to(orders::create))]),
    Resource::new("/orders/batch", &[(Method::POST, || web::to(batch::create))]),
    Resource::new("/orders/events", &[(Method::GET, || web::to(events::all))]).endless(),
    Resource::new(
        "/orders/{id}",
        &[(Method::GET, || web::to(orders::read)), (Method::DELETE, || web::to(changes::delete))],
    ),
    Resource::new("/orders/{id}/cancel", &[(Method::POST, || web::to(changes::cancel))]),
    Resource::new("/orders/{id}/events", &[(Method::GET, || web::to(events::of_order))]).endless(),
    Resource::new("/orders/{id}/timeline", &[(Method::GET, || web::to(timeline::read))]),
    Resource::new("/problems", &[(Method::GET, || web::to(problems::list))]).open(),
    Resource::new("/problems/{slug}", &[(Method::GET, || web::to(problems::read))]).open(),
    Resource::new("/openapi.json", &[(Method::GET, || web::to(docs::description))]).open(),
    Resource::new("/openapi-3.0.json", &[(Method::GET, || web::to(docs::older_description))]).open(),
    Resource::new("/docs", &[(Method::GET, || web::to(docs::page))]).open(),
    Resource::new("/docs/{file}", &[(Method::GET, || web::to(docs::file))]).open(),
    Resource::new("/livez", &[(Method::GET, || web::to(health::live))]).open(),
    Resource::new("/readyz", &[(Method::GET, || web::to(health::ready))]).open(),
];

/// A method, and what serves it.
type Served = (Method, fn() -> actix_web::Route);

/// A path, and what is served there.
#[derive(Debug)]
pub struct Resource {
    /// The path, with its parameters in braces.
    pub path: &'static str,
    serves: &'static [Served],
    endless: bool,
    open: bool,
}

impl Resource {
    const fn new(path: &'static str, serves: &'static [Served]) -> Self {
        Self { path, serves, endless: false, open: false }
    }

    /// Its GET is a stream without an end, of which there is no HEAD.
    const fn endless(self) -> Self {
        Self { endless: true, ..self }
    }

    /// It is everybody's: whether the service is well, and what it is. All others ask for credentials.
    const fn open(self) -> Self {
        Self { open: true, ..self }
    }

    /// What is served: HEAD with every GET that ends.
    pub fn methods(&self) -> impl Iterator<Item = &'static Method> {
        self.routes().map(|(method, _)| method)
    }

    /// Whether its GET is a stream without an end.
    #[must_use]
    pub const fn is_endless(&self) -> bool {
        self.endless
    }

    fn routes(&self) -> impl Iterator<Item = (&'static Method, fn() -> actix_web::Route)> {
        let endless = self.endless;
        self.serves.iter().flat_map(move |(method, route)| {
            let head = (*method == Method::GET && !endless).then_some((&Method::HEAD, *route));
            [Some((method, *route)), head].into_iter().flatten()
        })
    }

    fn allow(&self) -> String {
        self.methods().map(Method::as_str).collect::<Vec<_>>().join(", ")
    }

    fn service(&'static self) -> impl HttpServiceFactory + 'static {
        let mut resource = web::resource(self.path);
        for (method, route) in self.routes() {
            resource = resource.route(route().method(method.clone()));
        }
        resource
            .default_service(web::to(|| async { Problem::method_not_allowed(self.allow()).error_response() }))
            .wrap(from_fn(|request, next: Next<BoxBody>| observe(self.path, request, next)))
    }
}

/// Whether `route` is everybody's. What is no route is not.
#[must_use]
pub fn is_open(route: &str) -> bool {
    SURFACE.iter().any(|resource| resource.open && resource.path == route)
}

/// Whether `route` says how this service is.
#[must_use]
pub fn is_health(route: &str) -> bool {
    ["/livez", "/readyz"].contains(&route)
}

/// Adds all routes.
pub fn configure(config: &mut web::ServiceConfig) {
    for resource in SURFACE {
        config.service(resource.service());
    }
    config.default_service(
        web::route().to(elsewhere).wrap(from_fn(|request, next: Next<BoxBody>| observe(NONE, request, next))),
    );
}

fn elsewhere() -> Ready<HttpResponse> {
    ready(Problem::new(Kind::NotFound, "No route of this API has that path.").error_response())
}
