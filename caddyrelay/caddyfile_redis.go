package caddyrelay

import (
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// UnmarshalCaddyfile implements [caddyfile.Unmarshaler]. Syntax:
//
//	redis {
//		address  <host:port or URL>, or those of Sentinels, or of nodes of a cluster
//		mode     auto | standalone | sentinel | cluster
//		master_name <name>
//		sentinel_username <name>
//		sentinel_password <placeholder>
//		database <number>
//		username <name>
//		password <placeholder>
//		prefix   <text>
//		durability replicas <number> | all [<duration>]
//		isolate_after <duration>
//		migrate_from embedded [<path>]
//		tls {
//			ca_file     <path>
//			server_name <name>
//			cert_file   <path>
//			key_file    <path>
//		}
//	}
func (b *RedisBroker) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the broker's name
	begin := d.Token()
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := b.unmarshalOption(d); err != nil {
			return err
		}
	}
	// Whether one address is a server's or a Sentinel's is known when all options are.
	if b.MasterName != "" || b.Mode == "sentinel" {
		b.Sentinels = b.addresses
	} else if len(b.addresses) > 1 {
		b.Nodes = b.addresses
	} else if len(b.addresses) == 1 {
		b.Address = b.addresses[0]
	}
	b.addresses = nil
	return at(begin, b.check())
}

func (b *RedisBroker) unmarshalOption(d *caddyfile.Dispenser) (err error) {
	switch option := d.Val(); option {
	case "address":
		args := d.RemainingArgs()
		if len(args) == 0 {
			return d.ArgErr()
		}
		b.addresses = args
	case "database":
		var text string
		if err = word(d, &text); err == nil {
			if b.Database, err = strconv.Atoi(text); err != nil {
				err = d.Errf("database: %q is not a number", text)
			}
		}
	case "username":
		err = word(d, &b.Username)
	case "password":
		err = word(d, &b.Password)
	case "prefix":
		err = word(d, &b.Prefix)
	case "tls":
		b.TLS = new(RedisTLS)
		err = b.TLS.unmarshalCaddyfile(d)
	case "durability":
		err = b.unmarshalDurability(d)
	case "isolate_after":
		err = duration(d, &b.IsolateAfter)
	case "migrate_from":
		if b.MigrateFrom == nil {
			b.MigrateFrom = new(MigrateFrom)
		}
		err = b.MigrateFrom.unmarshalCaddyfile(d)
	case "master_name":
		err = word(d, &b.MasterName)
	case "sentinel_username":
		err = word(d, &b.SentinelUsername)
	case "sentinel_password":
		err = word(d, &b.SentinelPassword)
	case "mode":
		err = word(d, &b.Mode)
	default:
		err = unknown(d, "broker redis", "address", "database", "durability", "isolate_after", "master_name", "migrate_from", "mode", "password", "prefix", "sentinel_password", "sentinel_username", "tls", "username")
	}
	return err
}

func (b *RedisBroker) unmarshalDurability(d *caddyfile.Dispenser) (err error) {
	args := d.RemainingArgs()
	if len(args) < 2 || len(args) > 3 || args[0] != "replicas" {
		return d.Errf("durability: write \"durability replicas 1\", with a time behind it if 50ms is not enough; " +
			"other levels are demanded in the channel")
	}
	if b.AllReplicas = args[1] == "all"; !b.AllReplicas {
		if b.Replicas, err = strconv.Atoi(args[1]); err != nil || b.Replicas < 1 {
			return d.Errf("durability: %q is not a number of replicas, nor all", args[1])
		}
	}
	if len(args) == 3 {
		t, err := caddy.ParseDuration(args[2])
		if err != nil {
			return d.Errf("durability: %q is not a duration: write one such as 50ms", args[2])
		}
		b.ReplicaTimeout = caddy.Duration(t)
	}
	return nil
}

func (t *RedisTLS) unmarshalCaddyfile(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		fields := map[string]*string{
			"ca_file": &t.CAFile, "server_name": &t.ServerName, "cert_file": &t.CertFile, "key_file": &t.KeyFile,
		}
		field := fields[d.Val()]
		if field == nil {
			return unknown(d, "tls", "ca_file", "cert_file", "key_file", "server_name")
		}
		if err := word(d, field); err != nil {
			return err
		}
	}
	return nil
}
