// Talks to the API by a client of oapi-codegen.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"example.com/client/orders"
)

func main() {
	ctx, url := context.Background(), os.Args[1]
	var accepted int64

	// guide: from here
	client, err := orders.NewClientWithResponses(url)
	check(err)
	for _, quantity := range []int32{3, 0} {
		wanted := orders.NewOrder{UserId: 7, ProductId: 42, Quantity: quantity}
		answer, err := client.CreateOrderWithResponse(ctx, nil, wanted)
		check(err)
		if order := answer.JSON201; order != nil {
			fmt.Printf("201 %s version %d, deleted: %s\n", order.Status, order.Version, orElse(order.DeletedAt, "never"))
			accepted = order.ID
		} else if problem := answer.ApplicationproblemJSON422; problem != nil {
			fmt.Printf("%d %s: %s (%s)\n", problem.Status, problem.Type, problem.Detail, (*problem.Errors)[0].Field)
		}
	}
	// guide: to here

	_, err = client.CancelOrderWithResponse(ctx, accepted, nil)
	check(err)
	conflict, err := client.CancelOrderWithResponse(ctx, accepted, nil)
	check(err)
	problem := conflict.ApplicationproblemJSON409
	fmt.Printf("%d %s: %s\n", problem.Status, problem.Type, problem.Detail)

	batch, err := client.CreateOrdersWithResponse(ctx, []orders.NewOrder{
		{UserId: 7, ProductId: 42, Quantity: 1}, {UserId: 7, ProductId: 42, Quantity: 0},
	})
	check(err)
	for _, result := range batch.JSON200.Results {
		if result.Order != nil {
			fmt.Printf("batch: %d %s\n", result.Status, result.Order.Status)
		} else {
			fmt.Printf("batch: %d %s\n", result.Status, result.Problem.Type)
		}
	}

	timeline, err := client.ReadTimelineWithResponse(ctx, accepted)
	check(err)
	for _, change := range timeline.JSON200.Changes {
		fmt.Printf("timeline: %s %s, offset: %s\n", change.Type, change.Status, orElse(change.Published.Offset, "none"))
	}

	newer, err := orders.NewClientWithResponses(os.Args[2])
	check(err)
	later, err := newer.ReadOrderWithResponse(ctx, 1, nil)
	check(err)
	fmt.Printf("newer: %s\n", later.JSON200.Status)
}

// A value that may be null, as a text.
func orElse[T any](value *T, none string) string {
	if value == nil {
		return none
	}
	return fmt.Sprint(*value)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
