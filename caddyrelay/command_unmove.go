package caddyrelay

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddyrelay/relay/broker/boltbroker"
)

// unmoveCommand makes "caddy relay unmove", the way back from migrate_from.
func unmoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unmove <path>",
		Short: "Lets broker embedded use a store again that migrate_from has moved",
		Long: `Takes back what migrate_from has noted in the file of an embedded store, so that broker
embedded opens it again. The file has what it had when it was moved: what was delivered
from Redis since is delivered again, and what was accepted there since is not in it.
Stop what serves the messages in Redis first.`,
		Example: "  caddy relay unmove /var/lib/caddy/relay.db",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return errors.New("the path of a store is expected, such as: caddy relay unmove /var/lib/caddy/relay.db")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := boltbroker.Unmove(args[0])
			if err != nil {
				return fmt.Errorf("nothing was changed: %w", err)
			}
			when := "began to move on " + m.Began.UTC().Format(time.RFC3339)
			if !m.Done.IsZero() {
				when = "had moved on " + m.Done.UTC().Format(time.RFC3339)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "broker embedded can use %s again. It %s to %s.\n"+
				"Delete the relay's keys there before you move it again.\n", args[0], when, m.To)
			return err
		},
	}
}
