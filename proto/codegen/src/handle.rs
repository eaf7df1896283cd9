//! The handle of a service, made from the server that tonic generates for it.
//!
//! tonic's own output is the only source: it is parsed, and what the handle says about types, names and
//! comments is taken from there. So every setting of tonic's and prost's holds for handles too, and nothing here
//! repeats their naming rules.

use heck::ToSnakeCase as _;
use prost_build::{Service, ServiceGenerator};
use quote::{format_ident, quote};
use syn::{
    Attribute, Expr, ExprCall, File, FnArg, GenericArgument, Ident, ImplItem, Item, ItemImpl, ItemMod, ItemTrait, Path,
    PathArguments, ReturnType, Stmt, TraitItem, TraitItemFn, TraitItemType, Type, TypeParamBound, parse_quote,
    visit::Visit,
};

use crate::options::{MethodOptions, Options, Place, Resume};

/// The name of the handle of a service.
pub(crate) fn name(service: &str) -> String {
    format!("{service}Handle")
}

/// The file, beside the generated code of a package, that holds its descriptors.
pub(crate) fn descriptors_file(package: &str) -> String {
    format!("{}.descriptors.bin", if package.is_empty() { "_" } else { package })
}

/// tonic's generator, with a handle added for each service.
pub(crate) struct Generator {
    tonic: Box<dyn ServiceGenerator>,
    options: Options,
}

impl Generator {
    pub(crate) fn around(tonic: Box<dyn ServiceGenerator>, options: Options) -> Self {
        Self { tonic, options }
    }
}

impl ServiceGenerator for Generator {
    fn generate(&mut self, service: Service, buf: &mut String) {
        let mut text = String::new();
        self.tonic.generate(service.clone(), &mut text);
        let mut file = syn::parse_file(&text).expect("tonic generates Rust");
        add_handle(&mut file, &service, &self.options);
        buf.push_str(&prettyplease::unparse(&file));
    }

    fn finalize(&mut self, buf: &mut String) {
        self.tonic.finalize(buf);
    }

    fn finalize_package(&mut self, package: &str, buf: &mut String) {
        self.tonic.finalize_package(package, buf);
    }
}

/// Adds to tonic's code for one service:
/// - in the server's module, what a node needs to reach the trait behind a `FooServer`;
/// - a module with the handle, and the handle's name at the top of the package.
///
/// Leaves the code alone when the server is not built: a handle needs its trait.
fn add_handle(file: &mut File, service: &Service, options: &Options) {
    let Some(mut server) = Server::find(file, service) else { return };
    let names = Names {
        server_mod: server.module.ident.clone(),
        handle_mod: handle_mod(&server.module.ident),
        server: format_ident!("{}Server", service.name),
        handle: format_ident!("{}", name(&service.name)),
        service_trait: format_ident!("{}", service.name),
        service: full_name(service),
        descriptors: descriptors_file(&service.package),
    };
    let methods = methods(&server.service_trait(), service, options);
    let docs = server.docs();
    let codec = server.codec();
    server.announce_when_built();
    let carried = codec.as_ref().is_some_and(is_prost) && methods.iter().any(Method::is_unary);
    server.items().extend([reach(&names, carried), local(&names, &methods, carried)].into_iter().flatten());

    let handle_mod = handle_module(&names, &methods, &docs, codec.as_ref());
    let (module, handle) = (&names.handle_mod, &names.handle);
    let re_export: Item = parse_quote! { pub use #module::#handle; };
    file.items.extend([Item::Mod(handle_mod), re_export]);
}

/// `cart_handle`, beside tonic's `cart_server` and `cart_client`.
fn handle_mod(server_mod: &Ident) -> Ident {
    let server_mod = server_mod.to_string();
    format_ident!("{}_handle", server_mod.strip_suffix("_server").unwrap_or(&server_mod))
}

struct Names {
    server_mod: Ident,
    handle_mod: Ident,
    server: Ident,
    handle: Ident,
    service_trait: Ident,
    /// "shop.v1.Cart"
    service: String,
    descriptors: String,
}

fn full_name(service: &Service) -> String {
    if service.package.is_empty() {
        service.proto_name.clone()
    } else {
        format!("{}.{}", service.package, service.proto_name)
    }
}

/// tonic's module for the server side of one service.
struct Server<'a> {
    module: &'a mut ItemMod,
    struct_name: Ident,
    trait_name: Ident,
}

impl<'a> Server<'a> {
    fn find(file: &'a mut File, service: &Service) -> Option<Self> {
        let struct_name = format_ident!("{}Server", service.name);
        let trait_name = format_ident!("{}", service.name);
        let module = file.items.iter_mut().find_map(|item| match item {
            Item::Mod(module) => {
                let (_, items) = module.content.as_ref()?;
                items
                    .iter()
                    .any(|item| matches!(item, Item::Struct(found) if found.ident == struct_name))
                    .then_some(module)
            }
            _ => None,
        })?;
        Some(Self { module, struct_name, trait_name })
    }

    fn items(&mut self) -> &mut Vec<Item> {
        &mut self.module.content.as_mut().expect("it was found by its content").1
    }

    fn service_trait(&mut self) -> ItemTrait {
        let name = self.trait_name.clone();
        self.items()
            .iter()
            .find_map(|item| match item {
                Item::Trait(found) if found.ident == name => Some(found.clone()),
                _ => None,
            })
            .expect("tonic's server module defines the service's trait")
    }

    /// The comments of the service in the .proto file.
    fn docs(&mut self) -> Vec<Attribute> {
        let name = self.struct_name.clone();
        self.items()
            .iter()
            .find_map(|item| match item {
                Item::Struct(found) if found.ident == name => Some(documentation(&found.attrs)),
                _ => None,
            })
            .unwrap_or_default()
    }

    /// The codec that tonic was told to use: `tonic_prost::ProstCodec::default()` unless `codec_path` says otherwise.
    /// A service without methods uses none.
    fn codec(&mut self) -> Option<Expr> {
        struct Find(Option<Expr>);
        impl<'ast> Visit<'ast> for Find {
            fn visit_local(&mut self, local: &'ast syn::Local) {
                if let (syn::Pat::Ident(name), Some(init)) = (&local.pat, &local.init)
                    && name.ident == "codec"
                {
                    self.0.get_or_insert_with(|| (*init.expr).clone());
                }
                syn::visit::visit_local(self, local);
            }
        }
        let mut find = Find(None);
        find.visit_item_mod(self.module);
        find.0
    }

    /// Makes each way to build a `FooServer<T>` tell the framework, once a type, how to reach the `T` in it. All of
    /// tonic's constructors come down to `from_arc`.
    fn announce_when_built(&mut self) {
        let (server, service_trait) = (self.struct_name.clone(), self.trait_name.clone());
        let inherent = self
            .items()
            .iter_mut()
            .find_map(|item| match item {
                Item::Impl(found) if found.trait_.is_none() && is_named(&found.self_ty, &server) => Some(found),
                _ => None,
            })
            .expect("tonic's server has constructors");
        inherent.generics.make_where_clause().predicates.push(parse_quote! { T: #service_trait });
        let from_arc = function_of(inherent, "from_arc").expect("tonic's server has `from_arc`");
        let Some(Stmt::Expr(tail, None)) = from_arc.block.stmts.last_mut() else {
            panic!("tonic's `from_arc` ends in the value it built")
        };
        let built: ExprCall = parse_quote! { ::outpost::codegen::built(#tail) };
        *tail = Expr::Call(built);
    }
}

/// One method as the handle needs it. Types are as tonic's trait writes them, relative to a module of the package.
struct Method {
    ident: Ident,
    /// "/shop.v1.Cart/Add"
    path: String,
    options: MethodOptions,
    docs: Vec<Attribute>,
    deprecated: bool,
    /// The messages, without `tonic::Request` and streams around them.
    request: Type,
    response: Type,
    client_streams: bool,
    server_streams: bool,
    /// The trait's method takes `self: Arc<Self>`, not `&self` (tonic's setting `use_arc_self`).
    takes_arc: bool,
}

fn methods(service_trait: &ItemTrait, service: &Service, options: &Options) -> Vec<Method> {
    let mut declared = service.methods.iter();
    // tonic writes the type of a method's response stream right before the method.
    let mut stream_item = None;
    let mut methods = Vec::new();
    for item in &service_trait.items {
        match item {
            TraitItem::Type(stream) => stream_item = Some(item_of(stream)),
            TraitItem::Fn(function) => {
                let proto = declared.next().expect("tonic's trait has one function a method");
                let path = format!("/{}/{}", full_name(service), proto.proto_name);
                let options = options.get(&path).cloned().unwrap_or_default();
                methods.push(Method::new(function, proto, path, options, stream_item.take()));
            }
            _ => {}
        }
    }
    methods
}

impl Method {
    fn new(
        function: &TraitItemFn,
        proto: &prost_build::Method,
        path: String,
        options: MethodOptions,
        stream_item: Option<Type>,
    ) -> Self {
        let mut inputs = function.sig.inputs.iter();
        let takes_arc = matches!(inputs.next(), Some(FnArg::Receiver(receiver)) if receiver.colon_token.is_some());
        let Some(FnArg::Typed(request)) = inputs.next() else { panic!("a method of tonic's trait takes a request") };
        let request = argument(&request.ty); // of tonic::Request<_>
        let ReturnType::Type(_, result) = &function.sig.output else { panic!("a method of tonic's trait answers") };
        let response = argument(&argument(result)); // of Result<tonic::Response<_>, tonic::Status>
        Self {
            ident: function.sig.ident.clone(),
            path,
            options,
            docs: documentation(&function.attrs),
            deprecated: proto.options.deprecated(),
            request: if proto.client_streaming { argument(&request) } else { request },
            response: match stream_item {
                Some(item) => item,
                None if proto.server_streaming => argument(&response), // of BoxStream<_>, as default stubs have it
                None => response,
            },
            client_streams: proto.client_streaming,
            server_streams: proto.server_streaming,
            takes_arc,
        }
    }

    fn is_unary(&self) -> bool {
        !self.client_streams && !self.server_streams
    }

    /// What tonic's trait takes.
    fn trait_request(&self) -> Type {
        let message = &self.request;
        if self.client_streams {
            parse_quote! { ::tonic::Request<::tonic::Streaming<#message>> }
        } else {
            parse_quote! { ::tonic::Request<#message> }
        }
    }

    /// What the local trait answers with: the message, or a boxed stream of it.
    fn local_response(&self) -> Type {
        let message = &self.response;
        if self.server_streams {
            parse_quote! { ::outpost::codegen::BoxStream<#message> }
        } else {
            message.clone()
        }
    }
}

/// How the framework gets from a `FooServer<T>` to the `T` that it serves.
fn reach(names: &Names, carried: bool) -> Vec<Item> {
    let Names { server, service_trait, handle_mod, .. } = names;
    let carrying = carried.then(|| {
        quote! {
            .carrying(
                std::sync::Arc::new(OutpostLocal(std::sync::Arc::clone(&self.inner))),
                self.max_decoding_message_size,
            )
        }
    });
    vec![parse_quote! {
        impl<T: #service_trait> ::outpost::codegen::Reach for #server<T> {
            fn direct(&self) -> ::outpost::codegen::Direct {
                let local: std::sync::Arc<dyn super::#handle_mod::Local> =
                    std::sync::Arc::new(OutpostLocal(std::sync::Arc::clone(&self.inner)));
                ::outpost::codegen::Direct::new(local)#carrying
            }

            fn with_limits(self, limits: &::outpost::codegen::Limits) -> Self {
                self.accept_compressed(CompressionEncoding::Gzip)
                    .accept_compressed(CompressionEncoding::Zstd)
                    .max_decoding_message_size(limits.max_message_bytes)
            }
        }
    }]
}

/// The object-safe form of the service's trait, for the type inside a server. tonic's own is not object safe once a
/// method streams to the client, because each implementation names the type of its stream.
fn local(names: &Names, methods: &[Method], carried: bool) -> Vec<Item> {
    let Names { service_trait, handle_mod, .. } = names;
    let functions = methods.iter().map(|method| {
        let Method { ident, .. } = method;
        let signature = local_signature(method);
        let receiver = if method.takes_arc {
            quote! { std::sync::Arc::clone(&self.0) }
        } else {
            quote! { &*self.0 }
        };
        let call = quote! { <T as #service_trait>::#ident(#receiver, request) };
        let body = if method.server_streams {
            quote! { Box::pin(async move { Ok(#call.await?.map(::outpost::codegen::box_stream)) }) }
        } else {
            // tonic's trait boxes its futures, so this is the very box: nothing is allocated here.
            call
        };
        quote! { #signature { #body } }
    });
    let carries = carried.then(|| carries(names, methods));
    let mut items = vec![
        parse_quote! { struct OutpostLocal<T>(std::sync::Arc<T>); },
        parse_quote! {
            #[allow(deprecated)]
            impl<T: #service_trait> super::#handle_mod::Local for OutpostLocal<T> {
                #(#functions)*
            }
        },
    ];
    items.extend(carries);
    items
}

/// The unary methods of the type inside a server, by path, with messages as they travel: for calls from other nodes.
fn carries(names: &Names, methods: &[Method]) -> Item {
    let Names { service_trait, handle_mod, .. } = names;
    let arms = methods.iter().filter(|method| method.is_unary()).map(|method| {
        let Method { ident, path, .. } = method;
        let call = quote! { <Self as super::#handle_mod::Local>::#ident(self, request) };
        quote! { #path => ::outpost::codegen::carry(request, |request| #call) }
    });
    parse_quote! {
        #[allow(deprecated)]
        impl<T: #service_trait> ::outpost::codegen::Carries for OutpostLocal<T> {
            fn carry<'a>(
                &'a self,
                path: &str,
                request: ::tonic::Request<::outpost::codegen::Bytes>,
            ) -> ::outpost::codegen::CarriedFuture<'a> {
                match path {
                    #(#arms,)*
                    _ => ::outpost::codegen::carry_nothing(),
                }
            }
        }
    }
}

/// Whether messages are prost's, and not of a codec of the user's.
fn is_prost(codec: &Expr) -> bool {
    quote! { #codec }.to_string().replace(' ', "") == "tonic_prost::ProstCodec::default()"
}

fn local_signature(method: &Method) -> proc_macro2::TokenStream {
    let Method { ident, .. } = method;
    let (request, response) = (method.trait_request(), method.local_response());
    quote! { fn #ident<'a>(&'a self, request: #request) -> ::outpost::codegen::CallFuture<'a, #response> }
}

fn handle_module(names: &Names, methods: &[Method], docs: &[Attribute], codec: Option<&Expr>) -> ItemMod {
    let Names { handle_mod, handle, service, server_mod, server, descriptors, .. } = names;
    let summary = format!(
        " Calls `{service}` wherever its module lives: directly when it is in this process, by gRPC when it is not. \
         Cheap to clone."
    );
    let local_docs = format!(" What a [`{server}`](super::{server_mod}::{server}) looks like from within its process.");
    let signatures = methods.iter().map(local_signature);
    let functions = methods.iter().map(|method| handle_function(method, codec));
    parse_quote! {
        /// Generated handle.
        pub mod #handle_mod {
            #![allow(unused_variables, dead_code, missing_docs, deprecated, clippy::wildcard_imports, clippy::missing_errors_doc, clippy::useless_conversion, clippy::clone_on_copy, clippy::redundant_closure)]

            #[doc = #local_docs]
            #[doc(hidden)]
            pub trait Local: Send + Sync + 'static {
                #(#signatures;)*
            }

            #(#docs)*
            ///
            #[doc = #summary]
            #[derive(Clone, Debug)]
            pub struct #handle {
                route: ::outpost::codegen::Route,
            }

            impl ::outpost::Handle for #handle {
                const SERVICE: &'static str = #service;

                fn from_route(route: ::outpost::codegen::Route) -> Self {
                    Self { route }
                }
            }

            ::outpost::codegen::inventory::submit! {
                ::outpost::codegen::Described { service: #service, descriptors: include_bytes!(#descriptors) }
            }

            impl #handle {
                #(#functions)*
            }
        }
    }
}

fn handle_function(method: &Method, codec: Option<&Expr>) -> proc_macro2::TokenStream {
    let Method { ident, path, docs, request, response, .. } = method;
    let deprecated = method.deprecated.then(|| quote! { #[deprecated] });
    let (by, into, argument) = if method.client_streams {
        (
            Some(if method.server_streams { "bidi" } else { "client_stream" }),
            quote! { into_streaming_request },
            quote! { impl ::tonic::IntoStreamingRequest<Message = #request> },
        )
    } else {
        (
            method.server_streams.then_some("server_stream"),
            quote! { into_request },
            quote! { impl ::tonic::IntoRequest<#request> },
        )
    };
    let answer = if method.server_streams {
        quote! { ::outpost::Streaming<#response> }
    } else {
        quote! { #response }
    };
    let body = match (by, &method.options.resume) {
        // Never directly: the table that keeps answers is on the way of the wire.
        (None, _) if method.options.dedupe => quote! {
            let mut request = request.into_request();
            let call = self.route.begin(#path, &mut request)?;
            call.unary(request, #codec).await
        },
        // Not by a function of the route's: each that a request or response goes through copies it once more.
        (None, _) => {
            let elsewhere = format_ident!("{}", if codec.is_some_and(is_prost) { "message" } else { "unary" });
            quote! {
                let mut request = request.into_request();
                let call = self.route.begin(#path, &mut request)?;
                match call.local::<dyn Local>() {
                    Some(service) => call.direct(|| service.#ident(request)).await,
                    None => call.#elsewhere(request, #codec).await,
                }
            }
        }
        (Some(_), Some(resume)) => {
            let go_on = go_on(resume);
            quote! {
                self.route
                    .resumed_stream::<dyn Local, _, _, _>(
                        #path,
                        request.#into(),
                        || #codec,
                        |service, request| service.#ident(request),
                        #go_on,
                    )
                    .await
            }
        }
        (Some(by), None) => {
            let by = format_ident!("{by}");
            quote! {
                self.route
                    .#by::<dyn Local, _, _, _>(#path, request.#into(), #codec, |service, request| service.#ident(request))
                    .await
            }
        }
    };
    quote! {
        #(#docs)*
        #deprecated
        pub async fn #ident(
            &self,
            request: #argument,
        ) -> ::std::result::Result<::tonic::Response<#answer>, ::tonic::Status> {
            #body
        }
    }
}

/// What makes a request for the rest of a stream, after the last message that came.
fn go_on(Resume { response, request }: &Resume) -> proc_macro2::TokenStream {
    let (from, to) = (field(response), field(request));
    let value = match (response.optional, request.optional) {
        (true, true) => quote! { ::std::clone::Clone::clone(&last.#from).map(::std::convert::Into::into) },
        (true, false) => {
            quote! { ::std::convert::Into::into(::std::clone::Clone::clone(&last.#from).unwrap_or_default()) }
        }
        (false, true) => quote! {
            ::std::option::Option::Some(::std::convert::Into::into(::std::clone::Clone::clone(&last.#from)))
        },
        (false, false) => quote! { ::std::convert::Into::into(::std::clone::Clone::clone(&last.#from)) },
    };
    quote! { |request, last| request.#to = #value }
}

/// The name that prost gives a field. It does not tell; this is its rule, and where it were another one the generated code
/// would not compile.
fn field(Place { name, .. }: &Place) -> Ident {
    match name.to_snake_case().as_str() {
        name @ ("self" | "super" | "crate" | "extern") => format_ident!("{name}_"),
        // Any other name may be written like one that is a word of Rust.
        name => format_ident!("r#{name}"),
    }
}

fn documentation(attributes: &[Attribute]) -> Vec<Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("doc")).cloned().collect()
}

fn function_of<'a>(implementation: &'a mut ItemImpl, name: &str) -> Option<&'a mut syn::ImplItemFn> {
    implementation.items.iter_mut().find_map(|item| match item {
        ImplItem::Fn(function) if function.sig.ident == name => Some(function),
        _ => None,
    })
}

fn path_of(ty: &Type) -> Option<&Path> {
    match ty {
        Type::Path(path) => Some(&path.path),
        _ => None,
    }
}

fn is_named(ty: &Type, name: &Ident) -> bool {
    path_of(ty).and_then(|path| path.segments.last()).is_some_and(|segment| segment.ident == *name)
}

/// `X` of `Some<X>` or `Some<X, Other>`.
fn argument(ty: &Type) -> Type {
    let segment = path_of(ty).and_then(|path| path.segments.last());
    first_argument(segment.map(|segment| &segment.arguments))
        .unwrap_or_else(|| panic!("tonic wrote `{}` where a generic type was expected", quote! { #ty }))
}

fn first_argument(arguments: Option<&PathArguments>) -> Option<Type> {
    let Some(PathArguments::AngleBracketed(arguments)) = arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty.clone()),
        _ => None,
    })
}

/// `X` of `type FooStream: Stream<Item = Result<X, Status>> + Send + 'static`.
fn item_of(stream: &TraitItemType) -> Type {
    stream
        .bounds
        .iter()
        .find_map(|bound| {
            let TypeParamBound::Trait(bound) = bound else { return None };
            let PathArguments::AngleBracketed(arguments) = &bound.path.segments.last()?.arguments else { return None };
            arguments.args.iter().find_map(|argument| match argument {
                GenericArgument::AssocType(item) if item.ident == "Item" => Some(self::argument(&item.ty)),
                _ => None,
            })
        })
        .unwrap_or_else(|| panic!("the stream type `{}` of tonic's trait has an item", stream.ident))
}
