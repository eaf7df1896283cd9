//! What else a buyer may like: whatever stands on the same shelves.

use std::{cmp::Reverse, collections::BTreeSet};

use outpost::BoxError;
use tonic::{Request, Response, Status};

use crate::v1::{
    CatalogHandle, CatalogListRequest, Product, RecommendationsListRequest, RecommendationsListResponse,
    recommendations_server::{self, RecommendationsServer},
};

/// Builds the module. It reads the catalog.
///
/// # Errors
/// Never.
pub async fn new(catalog: CatalogHandle) -> Result<RecommendationsServer<Recommendations>, BoxError> {
    Ok(RecommendationsServer::new(Recommendations { catalog }))
}

/// The module. It keeps nothing.
#[derive(Debug)]
pub struct Recommendations {
    catalog: CatalogHandle,
}

#[tonic::async_trait]
impl recommendations_server::Recommendations for Recommendations {
    async fn list(
        &self,
        request: Request<RecommendationsListRequest>,
    ) -> Result<Response<RecommendationsListResponse>, Status> {
        let RecommendationsListRequest { product_ids, limit } = request.into_inner();
        let catalog = self.catalog.list(CatalogListRequest { category: None }).await?;
        let liked: BTreeSet<&str> = product_ids.iter().map(String::as_str).collect();
        let mut product_ids = recommend(&catalog.into_inner().products, &liked);
        product_ids.truncate(limit.unwrap_or(5) as usize);
        Ok(Response::new(RecommendationsListResponse { product_ids }))
    }
}

/// The products that share a category with those liked: the most shared first, then by id.
fn recommend(products: &[Product], liked: &BTreeSet<&str>) -> Vec<String> {
    let is_liked = |product: &&Product| liked.contains(product.id.as_str());
    let shelves: BTreeSet<i32> =
        products.iter().filter(is_liked).flat_map(|product| &product.categories).copied().collect();
    let mut ranked: Vec<(Reverse<usize>, &str)> = products
        .iter()
        .filter(|product| !is_liked(product))
        .map(|product| {
            let shared = product.categories.iter().filter(|shelf| shelves.contains(*shelf)).count();
            (Reverse(shared), product.id.as_str())
        })
        .filter(|(Reverse(shared), _)| *shared > 0)
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, id)| id.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Category::{self, Books, Home, Kitchen, Office};

    fn product(id: &str, categories: &[Category]) -> Product {
        Product { id: id.into(), categories: categories.iter().copied().map(i32::from).collect(), ..Product::default() }
    }

    #[test]
    fn the_most_shared_shelves_come_first() {
        let products = [
            product("bowl", &[Kitchen, Home]),
            product("cookbook", &[Kitchen, Books]),
            product("kettle", &[Kitchen]),
            product("knife", &[Kitchen]),
            product("stapler", &[Office]),
            product("vase", &[Home, Kitchen]),
        ];
        let recommended = |liked: &[&str]| recommend(&products, &liked.iter().copied().collect());
        assert_eq!(recommended(&["bowl"]), ["vase", "cookbook", "kettle", "knife"]);
        assert_eq!(recommended(&["bowl", "vase", "unknown"]), ["cookbook", "kettle", "knife"]);
        assert!(recommended(&[]).is_empty());
    }
}
