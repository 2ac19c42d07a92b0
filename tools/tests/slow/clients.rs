//! Clients of all generators, each made, built and run. What `tests/e2e` tries in every run is tried here too, so that one run says how all
//! of them do.

use anyhow::Result;

use super::harness::clients::{
    OAPI_CODEGEN, OGEN, OPENAPI_GENERATOR_JAVA, OPENAPI_GENERATOR_PYTHON, OPENAPI_GENERATOR_TYPESCRIPT,
    OPENAPI_PYTHON_CLIENT, OPENAPI_TYPESCRIPT, ORVAL,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_openapi_python_client_works() -> Result<()> {
    OPENAPI_PYTHON_CLIENT.works().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_openapi_generator_for_python_works() -> Result<()> {
    OPENAPI_GENERATOR_PYTHON.works().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_openapi_generator_for_java_works() -> Result<()> {
    OPENAPI_GENERATOR_JAVA.works().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_openapi_generator_for_typescript_works() -> Result<()> {
    OPENAPI_GENERATOR_TYPESCRIPT.works().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_openapi_typescript_works() -> Result<()> {
    OPENAPI_TYPESCRIPT.works().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_orval_works() -> Result<()> {
    ORVAL.works().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_oapi_codegen_works() -> Result<()> {
    OAPI_CODEGEN.works().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_ogen_works() -> Result<()> {
    OGEN.works().await
}
