import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;

/** Java's own client. Over plain HTTP it offers an upgrade to HTTP/2 with each request. */
public class Client {
    static final String ORDER = "{\"user_id\": 1, \"product_id\": 2, \"quantity\": 3}";

    static HttpRequest.Builder to(String url) {
        return HttpRequest.newBuilder(URI.create(url)).header("Content-Type", "application/json");
    }

    static void expect(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    public static void main(String[] arguments) throws Exception {
        String base = arguments[0];
        HttpClient client = HttpClient.newHttpClient();
        for (int number = 0; number < 300; number++) {
            var made = client.send(to(base + "/orders").POST(BodyPublishers.ofString(ORDER)).build(), BodyHandlers.ofString());
            expect(made.statusCode() == 201, number + ": " + made.statusCode() + " " + made.body());
        }
        var expecting = to(base + "/orders").expectContinue(true).POST(BodyPublishers.ofString(ORDER)).build();
        expect(client.send(expecting, BodyHandlers.ofString()).statusCode() == 201, "after 100 Continue");
        // An answer instead of 100 Continue hangs this client before Java 20, whatever the server (JDK-8286171).
        try (var lines = client.send(to(base + "/orders/1/events").build(), BodyHandlers.ofLines()).body()) {
            expect(lines.anyMatch(line -> line.startsWith("data: {\"type\":\"order.created\"")), "an event");
        }
        System.out.println("well");
    }
}
