//! Embedding the migrations reads a folder that cargo does not know of: without this line a new migration would not be built in.
fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
