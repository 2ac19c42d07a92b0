// Go's own client: many requests at once, expectations, and a stream.
package main

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

const order = `{"user_id": 1, "product_id": 2, "quantity": 3}`

func expect(holds bool, what ...any) {
	if !holds {
		fmt.Fprintln(os.Stderr, what...)
		os.Exit(1)
	}
}

func post(client *http.Client, url string, body string, expectation string) int {
	request, err := http.NewRequest("POST", url, strings.NewReader(body))
	expect(err == nil, err)
	request.Header.Set("Content-Type", "application/json")
	if expectation != "" {
		request.Header.Set("Expect", expectation)
	}
	answer, err := client.Do(request)
	expect(err == nil, err)
	defer answer.Body.Close()
	_, err = bufio.NewReader(answer.Body).WriteTo(&strings.Builder{})
	expect(err == nil, err)
	return answer.StatusCode
}

func main() {
	base := os.Args[1]
	transport := &http.Transport{MaxIdleConnsPerHost: 8, ExpectContinueTimeout: 5 * time.Second}
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	var workers sync.WaitGroup
	for worker := 0; worker < 8; worker++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for number := 0; number < 100; number++ {
				status := post(client, base+"/orders", order, "")
				expect(status == 201, number, status)
			}
		}()
	}
	workers.Wait()
	expect(post(client, base+"/orders", order, "100-continue") == 201, "after 100 Continue")
	expect(post(client, base+"/orders", strings.Repeat("x", 100_000), "100-continue") == 413, "instead of 100 Continue")
	head, err := client.Head(base + "/orders/1")
	expect(err == nil && head.StatusCode == 200 && head.ContentLength > 0, "HEAD", err)
	stream, err := (&http.Client{}).Get(base + "/orders/1/events")
	expect(err == nil, err)
	lines := bufio.NewScanner(stream.Body)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data: ") {
			fmt.Println("well")
			return
		}
	}
	expect(false, "the stream has ended")
}
