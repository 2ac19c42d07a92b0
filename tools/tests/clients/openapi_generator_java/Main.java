// Talks to the API by a client of openapi-generator for Java.

import java.util.List;
import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.api.OrdersApi;
import org.openapitools.client.model.BatchResult;
import org.openapitools.client.model.NewOrder;
import org.openapitools.client.model.Order;
import org.openapitools.client.model.Problem;
import org.openapitools.client.model.TimelineChange;

public final class Main {
    public static void main(String[] arguments) throws Exception {
        String url = arguments[0];
        long accepted = 0;

        // guide: from here
        ApiClient client = new ApiClient();
        client.updateBaseUri(url);
        OrdersApi orders = new OrdersApi(client);
        for (int quantity : List.of(3, 0)) {
            try {
                NewOrder wanted = new NewOrder().userId(7L).productId(42L).quantity(quantity);
                Order order = orders.createOrder(wanted, null, null);
                Object deleted = order.getDeletedAt() == null ? "never" : order.getDeletedAt();
                System.out.printf("201 %s version %d, deleted: %s%n", order.getStatus(), order.getVersion(), deleted);
                accepted = order.getID();
            } catch (ApiException refused) {
                Problem problem = client.getObjectMapper().readValue(refused.getResponseBody(), Problem.class);
                System.out.printf("%d %s: %s (%s)%n", problem.getStatus(), problem.getType(), problem.getDetail(),
                    problem.getErrors().get(0).getField());
            }
        }
        // guide: to here

        orders.cancelOrder(accepted, null);
        try {
            orders.cancelOrder(accepted, null);
        } catch (ApiException refused) {
            Problem problem = client.getObjectMapper().readValue(refused.getResponseBody(), Problem.class);
            System.out.printf("%d %s: %s%n", problem.getStatus(), problem.getType(), problem.getDetail());
        }
        NewOrder good = new NewOrder().userId(7L).productId(42L).quantity(1);
        NewOrder bad = new NewOrder().userId(7L).productId(42L).quantity(0);
        for (BatchResult result : orders.createOrders(List.of(good, bad)).getResults()) {
            String what = result.getOrder() != null ? result.getOrder().getStatus() : result.getProblem().getType();
            System.out.printf("batch: %d %s%n", result.getStatus(), what);
        }
        for (TimelineChange change : orders.readTimeline(accepted).getChanges()) {
            Long offset = change.getPublished().getOffset();
            System.out.printf("timeline: %s %s, offset: %s%n", change.getType(), change.getStatus(),
                offset == null ? "none" : offset);
        }
        ApiClient newer = new ApiClient();
        newer.updateBaseUri(arguments[1]);
        System.out.printf("newer: %s%n", new OrdersApi(newer).readOrder(1L, null).getStatus());
    }
}
