// Talks to the API by a client of ogen.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"example.com/client/orders"
)

// An API that asks for no credentials is sent none that count.
type credentials struct{}

func (credentials) Bearer(context.Context, orders.OperationName) (orders.Bearer, error) {
	return orders.Bearer{Token: "none"}, nil
}

func main() {
	ctx, url := context.Background(), os.Args[1]
	var accepted int64
	client, err := orders.NewClient(url, credentials{})
	check(err)

	for _, quantity := range []int32{3, 0} {
		answer, err := client.CreateOrder(ctx, &orders.NewOrder{UserID: 7, ProductID: 42, Quantity: quantity}, orders.CreateOrderParams{})
		check(err)
		switch answer := answer.(type) {
		case *orders.OrderHeaders:
			order := answer.Response
			deleted := "never"
			if at, isDeleted := order.DeletedAt.Get(); isDeleted {
				deleted = at.String()
			}
			fmt.Printf("201 %s version %d, deleted: %s\n", order.Status, order.Version, deleted)
			accepted = order.ID
		case *orders.CreateOrderUnprocessableEntity:
			problem := answer.Response
			fmt.Printf("%d %s: %s (%s)\n", problem.Status, problem.Type, problem.Detail, problem.Errors[0].Field)
		default:
			log.Fatalf("unexpected: %+v", answer)
		}
	}

	_, err = client.CancelOrder(ctx, orders.CancelOrderParams{ID: accepted})
	check(err)
	conflict, err := client.CancelOrder(ctx, orders.CancelOrderParams{ID: accepted})
	check(err)
	problem := conflict.(*orders.CancelOrderConflict).Response
	fmt.Printf("%d %s: %s\n", problem.Status, problem.Type, problem.Detail)

	batch, err := client.CreateOrders(ctx, []orders.NewOrder{
		{UserID: 7, ProductID: 42, Quantity: 1}, {UserID: 7, ProductID: 42, Quantity: 0},
	})
	check(err)
	for _, result := range batch.(*orders.BatchResultsHeaders).Response.Results {
		what := result.Problem.Value.Type
		if order, isAccepted := result.Order.Get(); isAccepted {
			what = order.Status
		}
		fmt.Printf("batch: %d %s\n", result.Status, what)
	}

	timeline, err := client.ReadTimeline(ctx, orders.ReadTimelineParams{ID: accepted})
	check(err)
	for _, change := range timeline.(*orders.TimelineHeaders).Response.Changes {
		offset := "none"
		if known, isKnown := change.Published.Offset.Get(); isKnown {
			offset = fmt.Sprint(known)
		}
		fmt.Printf("timeline: %s %s, offset: %s\n", change.Type, change.Status, offset)
	}

	newer, err := orders.NewClient(os.Args[2], credentials{})
	check(err)
	later, err := newer.ReadOrder(ctx, orders.ReadOrderParams{ID: 1})
	check(err)
	fmt.Printf("newer: %s\n", later.(*orders.ReadOrderOKHeaders).Response.Status)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
