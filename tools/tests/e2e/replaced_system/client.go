// Posts orders as the clients of the system that Outrider replaces do, and reads the answers as they do: into a map, by the very names.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"
)

// With the fields that those clients send although they are not theirs to set.
type order struct {
	ID        uint
	CreatedAt time.Time
	UpdatedAt time.Time
	DeletedAt *time.Time
	UserID    int `json:"user_id"`
	ProductID int `json:"product_id"`
	Quantity  int `json:"quantity"`
}

func post(url string, number int) error {
	body, err := json.Marshal(order{UserID: number, ProductID: 456, Quantity: 2})
	if err != nil {
		return err
	}
	answer, err := http.Post(url+"/orders", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		return fmt.Errorf("status %d", answer.StatusCode)
	}
	var reply map[string]any
	if err := json.NewDecoder(answer.Body).Decode(&reply); err != nil {
		return err
	}
	// As those clients decode it whole, too.
	for _, name := range []string{"CreatedAt", "UpdatedAt"} {
		if _, err := time.Parse(time.RFC3339Nano, reply[name].(string)); err != nil {
			return err
		}
	}
	fmt.Printf("%v %v\n", reply["ID"], reply["status"])
	return nil
}

func main() {
	url := flag.String("url", "http://localhost:8080", "where orders are posted")
	count := flag.Int("count", 10, "how many")
	flag.Parse()
	for number := 1; number <= *count; number++ {
		if err := post(*url, number); err != nil {
			fmt.Fprintln(os.Stderr, number, err)
			os.Exit(1)
		}
	}
}
