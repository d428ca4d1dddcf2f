import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;

/** Lists the tables of a warehouse and reads a word's neighbours through JDBC. */
public class Jdbc {
    public static void main(String[] arguments) throws Exception {
        try (Connection connection = DriverManager.getConnection(arguments[0])) {
            try (ResultSet tables = connection.getMetaData().getTables(null, "captions", "%", null)) {
                while (tables.next()) {
                    System.out.println("table\t" + tables.getString("TABLE_SCHEM") + "\t" + tables.getString("TABLE_NAME"));
                }
            }
            String query = "SELECT \"right\", npmi FROM captions.pmi WHERE \"left\" = ? ORDER BY npmi DESC, \"right\" LIMIT 20";
            try (PreparedStatement statement = connection.prepareStatement(query)) {
                // From the second run on, the driver asks for binary values.
                for (int run = 0; run < 7; run++) {
                    statement.setString(1, arguments[1]);
                    try (ResultSet rows = statement.executeQuery()) {
                        while (rows.next()) {
                            if (run == 6) {
                                System.out.println("row\t" + rows.getString(1) + "\t" + rows.getDouble(2));
                            }
                        }
                    }
                }
            }
        }
    }
}
