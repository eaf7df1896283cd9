//! What an application's `build.rs` calls.
//!
//! ```text
//! .proto ──protox──▶ descriptors ─┬─ tonic-prost-build ─▶ messages, FooClient, FooServer   (tonic's own)
//!                                 ├─ handle ────────────▶ FooHandle: direct when local, gRPC when not
//!                                 └─────────────────────▶ PACKAGE.descriptors.bin          (reflection)
//! ```
//!
//! ```no_run
//! // build.rs
//! fn main() -> Result<(), outpost_build::Error> {
//!     outpost_build::compile(&["proto/shop/v1/cart.proto"])
//! }
//! ```
//!
//! The application brings the code in as it would tonic's: `tonic::include_proto!("shop.v1")`. For each service
//! `Cart` of the package it holds, beside `cart_client::CartClient` and `cart_server::{Cart, CartServer}`, a
//! `CartHandle`. The machine needs no `protoc`.
//!
//! `import "outpost/v1/options.proto"` works without a copy of that file: it lets a method say what becomes of a call whose
//! answer was lost.

mod handle;
mod options;

use std::{
    collections::HashSet,
    fmt, io,
    path::{Path, PathBuf},
};

use prost_types::{FileDescriptorProto, FileDescriptorSet};
use protox::file::{ChainFileResolver, GoogleFileResolver, IncludeFileResolver};
pub use tonic_prost_build;

use options::{Fault, Options};

/// Compiles `.proto` files with the default settings.
///
/// Imports are looked up in the folder `proto` where the files are below it, and otherwise in the files' own folders.
///
/// # Errors
/// See [`Builder::compile`].
pub fn compile(files: &[impl AsRef<Path>]) -> Result<(), Error> {
    configure().compile(files)
}

/// Settings to compile with, for when [`compile`]'s defaults do not fit.
#[must_use]
pub fn configure() -> Builder {
    Builder {
        includes: Vec::new(),
        out_dir: None,
        tonic: tonic_prost_build::configure(),
        prost: prost_build::Config::new(),
    }
}

/// How to compile `.proto` files. Made by [`configure`].
#[derive(Debug)]
pub struct Builder {
    includes: Vec<PathBuf>,
    out_dir: Option<PathBuf>,
    tonic: tonic_prost_build::Builder,
    prost: prost_build::Config,
}

impl Builder {
    /// Adds a folder to look imports up in. The first folder named replaces the default.
    #[must_use]
    pub fn include(mut self, folder: impl Into<PathBuf>) -> Self {
        self.includes.push(folder.into());
        self
    }

    /// Writes the code into this folder, in place of cargo's `OUT_DIR`.
    #[must_use]
    pub fn out_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.out_dir = Some(folder.into());
        self
    }

    /// Changes the settings of [`tonic_prost_build`]: extern paths, attributes, bytes and the like. Settings about files
    /// and `protoc` have no effect: see [`Builder::out_dir`].
    ///
    /// ```no_run
    /// outpost_build::configure()
    ///     .tonic(|tonic| tonic.bytes(".").type_attribute(".shop.v1.Sku", "#[derive(Hash, Eq)]"))
    ///     .compile(&["proto/shop.proto"])?;
    /// # Ok::<(), outpost_build::Error>(())
    /// ```
    #[must_use]
    pub fn tonic(mut self, change: impl FnOnce(tonic_prost_build::Builder) -> tonic_prost_build::Builder) -> Self {
        self.tonic = change(self.tonic);
        self
    }

    /// Changes the settings of [`prost_build`] that [`Builder::tonic`] does not offer.
    #[must_use]
    pub fn prost(mut self, change: impl FnOnce(&mut prost_build::Config)) -> Self {
        change(&mut self.prost);
        self
    }

    /// Compiles the files into `OUT_DIR`, and tells cargo to come back when one of them, or one they import, changes.
    ///
    /// # Errors
    /// [`Error::Proto`] when a file does not parse or check, with its place; [`Error::NameTaken`] when a message has the
    /// name of a handle; [`Error::Output`] when the code can't be written.
    pub fn compile(mut self, files: &[impl AsRef<Path>]) -> Result<(), Error> {
        let includes = if self.includes.is_empty() { default_includes(files) } else { self.includes };
        let Parsed { mut descriptors, embedded, options, sources } = parse(files, &includes)?;
        #[expect(clippy::print_stdout, reason = "how a build script speaks to cargo")]
        for source in &sources {
            println!("cargo:rerun-if-changed={}", source.display());
        }
        handle_names_are_free(&descriptors)?;

        let out_dir = match self.out_dir {
            Some(folder) => folder,
            None => PathBuf::from(std::env::var_os("OUT_DIR").ok_or(Error::NoOutDir)?),
        };
        let with_services = descriptors.file.iter().filter(|file| !file.service.is_empty());
        let packages: HashSet<&str> = with_services.map(FileDescriptorProto::package).collect();
        for package in packages {
            let path = out_dir.join(handle::descriptors_file(package));
            std::fs::write(&path, &embedded).map_err(|error| Error::Output { path, error })?;
        }

        // Of use to this crate only; nobody's message is made of it.
        descriptors.file.retain(|file| file.name() != options::FILE);
        let generator = handle::Generator::around(self.tonic.clone().service_generator(), options);
        self.prost.service_generator(Box::new(generator));
        // With neither side built, tonic leaves the generator alone that it would otherwise replace.
        self.tonic
            .out_dir(&out_dir)
            .build_client(false)
            .build_server(false)
            .compile_fds_with_config(descriptors, self.prost)
            .map_err(|error| Error::Output { path: out_dir, error })
    }
}

/// Why `.proto` files could not be compiled. Its `Debug` is its message, since that is what a failed `build.rs` prints.
#[derive(thiserror::Error)]
pub enum Error {
    /// A file is wrong. `FILE:LINE:COLUMN: what is wrong`, where the fault has a place.
    #[error("{0}")]
    Proto(String),
    /// A message or enum already has the name that a service's handle would get.
    #[error(
        "{file}: `{name}` has the name of the handle of service `{service}`; rename one of them, \
         or compile them as two packages"
    )]
    NameTaken {
        /// The file that defines the service.
        file: String,
        /// The name wanted twice.
        name: String,
        /// The service whose handle it is.
        service: String,
    },
    /// The generated code could not be written.
    #[error("{}: {error}", path.display())]
    Output {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Called from outside a build script.
    #[error("OUT_DIR is not set: call outpost_build from a build script (build.rs)")]
    NoOutDir,
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn default_includes(files: &[impl AsRef<Path>]) -> Vec<PathBuf> {
    let root = Path::new("proto");
    let mut folders: Vec<PathBuf> = Vec::new();
    for file in files {
        let file = file.as_ref();
        let folder = if file.starts_with(root) { root } else { file.parent().unwrap_or(Path::new(".")) };
        // "" is what the parent of a bare file name comes out as.
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        if !folders.iter().any(|known| known == folder) {
            folders.push(folder.to_owned());
        }
    }
    folders
}

/// The files and all they import.
struct Parsed {
    /// With comments, and without the options that are not protobuf's own.
    descriptors: FileDescriptorSet,
    /// What a node knows the services by. Comments are most of a descriptor's size, and neither reflection nor a
    /// compatibility check reads them; options are read by nodes.
    embedded: Vec<u8>,
    options: Options,
    /// The paths that were read.
    sources: Vec<PathBuf>,
}

fn parse(files: &[impl AsRef<Path>], includes: &[PathBuf]) -> Result<Parsed, Error> {
    let mut resolver = ChainFileResolver::new();
    // First, so that a copy for other compilers, which may be older, is not read.
    resolver.add(options::Resolver);
    includes.iter().for_each(|include| resolver.add(IncludeFileResolver::new(include.clone())));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(files).map_err(|error| Error::Proto(located(&error, includes)))?;
    let options = options::read(&compiler.descriptor_pool()).map_err(|faults| {
        let lines: Vec<String> = faults.iter().map(|fault| told(fault, includes)).collect();
        Error::Proto(lines.join("\n"))
    })?;
    Ok(Parsed {
        descriptors: compiler.file_descriptor_set(),
        sources: compiler.files().filter_map(|file| file.path().map(Path::to_owned)).collect(),
        embedded: compiler.include_source_info(false).encode_file_descriptor_set(),
        options,
    })
}

/// A fault with its place, as the compiler tells its own.
fn told(Fault { file, at, problem }: &Fault, includes: &[PathBuf]) -> String {
    let path = path_of(file, includes).map_or_else(|| file.clone(), |path| path.display().to_string());
    match at {
        Some((line, column)) => format!("{path}:{line}:{column}: {problem}"),
        None => format!("{path}: {problem}"),
    }
}

/// A file's path as the build script sees it, so that an editor can open it.
fn path_of(file: &str, includes: &[PathBuf]) -> Option<PathBuf> {
    includes.iter().map(|include| include.join(file)).find(|path| path.exists())
}

/// `shop/v1/cart.proto:3:9: ...` with the file's path.
fn located(error: &protox::Error, includes: &[PathBuf]) -> String {
    // protox's `Debug` is the text with file, line and column; its `Display` has no place.
    let text = format!("{error:?}");
    let Some(file) = error.file() else { return text };
    let path = path_of(file, includes);
    match (text.strip_prefix(file), path) {
        (Some(rest), Some(path)) => format!("{}{rest}", path.display()),
        (Some(_), None) => text,
        (None, Some(path)) => format!("{}: {text}", path.display()),
        (None, None) => format!("{file}: {text}"),
    }
}

fn handle_names_are_free(descriptors: &FileDescriptorSet) -> Result<(), Error> {
    // prost turns `cart_handle` into `CartHandle`.
    let folded = |name: &str| name.replace('_', "").to_ascii_lowercase();
    let mut types = HashSet::new();
    for file in &descriptors.file {
        types.extend(file.message_type.iter().map(|message| (file.package(), folded(message.name()))));
        types.extend(file.enum_type.iter().map(|kind| (file.package(), folded(kind.name()))));
    }
    for file in &descriptors.file {
        for service in &file.service {
            let name = handle::name(service.name());
            if types.contains(&(file.package(), folded(&name))) {
                let (file, service) = (file.name().to_owned(), service.name().to_owned());
                return Err(Error::NameTaken { file, name, service });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What compiling one file says.
    fn error_of(proto: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("shop")).unwrap();
        let file = folder.path().join("shop/cart.proto");
        fs::write(&file, proto).unwrap();
        let includes = [folder.path().to_owned()];
        let error = match parse(&[&file], &includes) {
            Err(error) => error,
            Ok(parsed) => handle_names_are_free(&parsed.descriptors).unwrap_err(),
        };
        // The `Debug` is what cargo shows of a failed build script.
        format!("{error:?}").replace(&*folder.path().to_string_lossy(), "DIR")
    }

    #[test]
    fn a_fault_has_file_line_and_column() {
        let text = error_of("syntax = \"proto3\";\nmessage Cart {\n  int32 lines 1;\n}\n");
        assert!(text.starts_with("DIR/shop/cart.proto:3:15: "), "{text}");
    }

    #[test]
    fn an_unknown_type_has_its_place() {
        let text = error_of("syntax = \"proto3\";\nmessage Cart {\n  Line line = 1;\n}\n");
        assert!(text.starts_with("DIR/shop/cart.proto:3:3: ") && text.contains("Line"), "{text}");
    }

    #[test]
    fn a_missing_import_has_its_place() {
        let text = error_of("syntax = \"proto3\";\nimport \"shop/line.proto\";\n");
        assert!(text.starts_with("DIR/shop/cart.proto:2:1: ") && text.contains("shop/line.proto"), "{text}");
    }

    #[test]
    fn a_message_named_like_a_handle_is_refused() {
        let text = error_of("syntax = \"proto3\";\npackage shop;\nservice Cart {}\nmessage CartHandle {}\n");
        assert_eq!(
            text,
            "shop/cart.proto: `CartHandle` has the name of the handle of service `Cart`; \
             rename one of them, or compile them as two packages"
        );
    }

    /// What one method with options says, in line 8 of its file.
    fn error_of_method(method: &str) -> String {
        error_of(&format!(
            "syntax = \"proto3\";\npackage shop;\nimport \"outpost/v1/options.proto\";\n\
             message Ask {{ uint64 after = 1; repeated uint64 all = 2; oneof a {{ uint64 one = 3; }} string name = 4; }}\n\
             message Event {{ uint64 sequence = 1; Ask ask = 2; bool flag = 3; bytes raw = 4; }}\n\n\
             service Cart {{\n{method}\n}}\n"
        ))
    }

    fn error_of_resume(response: &str, request: &str) -> String {
        error_of_method(&format!(
            "rpc Watch(Ask) returns (stream Event) {{\n  option (outpost.v1.resume) = {{ {response} {request} }};\n}}"
        ))
    }

    #[test]
    fn answers_of_streams_can_not_be_kept() {
        for kind in ["stream Ask) returns (Event", "Ask) returns (stream Event", "stream Ask) returns (stream Event"] {
            let text = error_of_method(&format!("rpc Add({kind}) {{\n  option (outpost.v1.delivery) = DEDUPE;\n}}"));
            assert!(text.starts_with("DIR/shop/cart.proto:9:3: method `Add` streams"), "{text}");
        }
    }

    #[test]
    fn only_a_stream_of_responses_to_one_request_is_resumed() {
        for kind in ["Ask) returns (Event", "stream Ask) returns (Event", "stream Ask) returns (stream Event"] {
            let option = "option (outpost.v1.resume) = { response_field: \"sequence\" request_field: \"after\" };";
            let text = error_of_method(&format!("rpc Add({kind}) {{\n  {option}\n}}"));
            assert!(text.starts_with("DIR/shop/cart.proto:9:3: method `Add` can't be resumed"), "{text}");
        }
    }

    #[test]
    fn the_fields_of_a_resume_are_there_and_fit() {
        let (sequence, after) = ("response_field: \"sequence\"", "request_field: \"after\"");
        for (response, request, problem) in [
            (
                "response_field: \"sequel\"",
                after,
                "message `shop.Event` has no field `sequel`; it has `sequence`, `ask`",
            ),
            (sequence, "request_field: \"before\"", "message `shop.Ask` has no field `before`; it has `after`"),
            ("", after, "`response_field` is missing: name a field of message `shop.Event`"),
            (sequence, "", "`request_field` is missing: name a field of message `shop.Ask`"),
            (sequence, "request_field: \"name\"", "`shop.Event.sequence` is uint64 and `shop.Ask.name` is string"),
            (sequence, "request_field: \"all\"", "`shop.Ask.all` can't tell a place in a stream"),
            (sequence, "request_field: \"one\"", "`shop.Ask.one` can't tell a place in a stream"),
            ("response_field: \"ask\"", after, "`shop.Event.ask` can't tell a place in a stream"),
            ("response_field: \"flag\"", after, "`shop.Event.flag` can't tell a place in a stream"),
        ] {
            let text = error_of_resume(response, request);
            assert!(text.starts_with("DIR/shop/cart.proto:9:3: ") && text.contains(problem), "{text}");
        }
    }

    #[test]
    fn every_option_that_makes_no_sense_is_told() {
        let text = error_of_method(
            "rpc A(Ask) returns (stream Event) {\n  option (outpost.v1.delivery) = DEDUPE;\n}\n\
             rpc B(Ask) returns (Event) {\n  option (outpost.v1.resume) = {};\n}",
        );
        let places: Vec<_> = text.lines().map(|line| line.split(": ").next().unwrap()).collect();
        assert_eq!(places, ["DIR/shop/cart.proto:9:3", "DIR/shop/cart.proto:12:3"], "{text}");
    }

    #[test]
    fn a_word_that_is_no_delivery_has_its_place() {
        let text = error_of_method("rpc Add(Ask) returns (Event) {\n  option (outpost.v1.delivery) = TWICE;\n}");
        assert!(text.starts_with("DIR/shop/cart.proto:9:") && text.contains("TWICE"), "{text}");
    }

    #[test]
    fn imports_are_found_from_the_folder_proto_or_the_files_own() {
        assert_eq!(default_includes(&["proto/shop/v1/cart.proto", "proto/a.proto"]), [Path::new("proto")]);
        assert_eq!(default_includes(&["api/cart.proto"]), [Path::new("api")]);
        assert_eq!(default_includes(&["cart.proto"]), [Path::new(".")]);
    }
}
